"""Composing the configs of many jobs quickly.

Hydra composes one job in tens of milliseconds, which a sweep of thousands cannot afford. Jobs
that choose the same config groups differ by plain values alone; for those, Hydra composes once,
and each section of the config is made once for each set of values that can affect it.
"""

import copy
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from heft_pipeline.config import HeftConfig
from heft_pipeline.errors import UserError
from heft_pipeline.validation import check, typed

_REFERENCE = re.compile(r"\$\{\.*([A-Za-z_]\w*)")


class Composer:
    """Makes typed configs from the overrides of Hydra jobs.

    Args:
        loader: Hydra's, which composes.
        config: The sweep's own config.
    """

    def __init__(self, loader: ConfigLoader, config: DictConfig) -> None:
        self._loader, self._config = loader, config
        self._parser = OverridesParser.create(config_loader=loader)
        self._parsed: dict[str, Override] = {}
        self._bases: dict[tuple[str, ...], _Base] = {}
        self._groups: dict[str, bool] = {}

    def job(self, overrides: Sequence[str]) -> DictConfig:
        """Let Hydra compose one job, its ``hydra`` node included.

        Args:
            overrides: The job's overrides.

        Returns:
            The config.
        """
        return self._loader.load_sweep_config(self._config, list(overrides))

    def typed(self, overrides: Sequence[str]) -> HeftConfig:
        """Make the typed and checked config of one job.

        Args:
            overrides: The job's overrides.

        Returns:
            What :func:`heft_pipeline.config.typed` gives for the job that Hydra composes.

        Raises:
            UserError: A value is missing or makes no sense; the text ends with the overrides.
        """
        structure: list[str] = []
        values: list[str] = []
        for text in overrides:
            override = self._parse(text)
            (values if self._is_plain_value(override) else structure).append(text)
        base = self._base(tuple(structure))
        plain = {}
        for text in values:
            override = self._parse(text)
            if base.is_new(override.key_or_group):
                self.job([*structure, text])  # Hydra's own checks and words
            plain[override.key_or_group] = override.value()
        try:
            return base.with_values(plain)
        except UserError as error:
            raise UserError(f"{error}\n(in the run {' '.join(overrides)})") from error

    def _parse(self, text: str) -> Override:
        if text not in self._parsed:
            self._parsed[text] = self._parser.parse_override(text)
        return self._parsed[text]

    def _is_plain_value(self, override: Override) -> bool:
        """Whether an override sets one existing key to a value that refers to nothing."""
        if override.is_add() or override.is_force_add() or override.is_delete():
            return False
        key = override.key_or_group
        if key not in self._groups:
            self._groups[key] = bool(self._loader.get_group_options(key))
        return (
            not self._groups[key] and override.package is None and "${" not in str(override.value())
        )

    def _base(self, structure: tuple[str, ...]) -> "_Base":
        if structure not in self._bases:
            self._bases[structure] = _Base(without_hydra(self.job(structure)))
        return self._bases[structure]


class _Base:
    """A composed config, and what its sections are for the values set on top of it."""

    def __init__(self, cfg: DictConfig) -> None:
        self._cfg = cfg
        raw = OmegaConf.to_container(cfg, resolve=False)
        assert isinstance(raw, dict)
        direct = {str(key): _referenced(value) for key, value in raw.items()}
        self._affected_by = {key: _closure(key, direct) for key in direct}
        self._missing = bool(OmegaConf.missing_keys(cfg))
        self._sections: dict[tuple[Any, ...], Any] = {}
        self._originals: dict[str, Any] = {}

    def is_new(self, key: str) -> bool:
        """Whether no value has been set under a key yet."""
        return key not in self._originals

    def with_values(self, values: dict[str, Any]) -> HeftConfig:
        sections = {}
        ready = False
        for field in fields(HeftConfig):
            name = field.name
            reach = self._affected_by[name]
            mine = tuple(
                (key, repr(value))
                for key, value in sorted(values.items())
                if key.split(".", 1)[0] in reach
            )
            if (name, mine) not in self._sections:
                if not ready:
                    self._set(values)
                    ready = True
                node = OmegaConf.select(self._cfg, name)
                self._sections[name, mine] = (
                    OmegaConf.to_object(node) if OmegaConf.is_config(node) else node
                )
            sections[name] = self._sections[name, mine]
        config = HeftConfig(**sections)
        check(config)
        return config

    def _set(self, values: dict[str, Any]) -> None:
        """Give the config these values, and its own under every key that they leave out."""
        for key in values:
            if key not in self._originals:
                parent, _, last = key.rpartition(".")
                holder = OmegaConf.select(self._cfg, parent) if parent else self._cfg
                self._originals[key] = copy.deepcopy(holder._get_node(last))
        for key, original in self._originals.items():
            OmegaConf.update(self._cfg, key, values.get(key, original), merge=False)
        if self._missing and OmegaConf.missing_keys(self._cfg):
            typed(self._cfg)  # says which value is missing


def without_hydra(job: DictConfig) -> DictConfig:
    """A job's config as its task function gets it.

    Args:
        job: A config with a ``hydra`` node.

    Returns:
        A copy without that node.
    """
    cfg = copy.deepcopy(job)
    with read_write(cfg), open_dict(cfg):
        del cfg["hydra"]
    return cfg


def _referenced(value: Any) -> set[str]:
    """The top-level keys that a raw config node's interpolations mention."""
    texts: Iterable[Any] = [value]
    if isinstance(value, dict):
        texts = value.values()
    elif isinstance(value, list):
        texts = value
    else:
        return set(_REFERENCE.findall(value)) if isinstance(value, str) else set()
    return set().union(*map(_referenced, texts))


def _closure(key: str, direct: dict[str, set[str]]) -> set[str]:
    """A key and all that it depends on, directly or not."""
    reached, waiting = set(), [key]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting.extend(direct.get(name, ()))
    return reached
