"""Composing the configs of many jobs quickly.

Hydra needs tens of milliseconds to compose a job, which is too long for a sweep of thousands.
Jobs that choose the same config groups differ in plain values only. For those, Hydra composes
once, and the values are set on what it composed: each section of the settings is made once for
each set of values that can affect it, and the full config of a job is a copy.
"""

import copy
import functools
import re
from collections import ChainMap
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from heft_pipeline.declare_settings import check
from heft_pipeline.errors import UserError
from heft_pipeline.settings.checks import typed
from heft_pipeline.settings.schema import HeftConfig

_WORD = re.compile(r"[A-Za-z_]\w*")


class Job:
    """One job of a sweep, composed.

    Attributes:
        number: Hydra's number of the job, unique in the sweep.
        overrides: The job's overrides.
        settings: Its checked settings.
    """

    def __init__(
        self,
        number: int,
        parsed: Sequence[Override],
        composed: "_Composed",
        values: dict[str, Any],
        settings: HeftConfig,
    ) -> None:
        self.number, self.settings = number, settings
        self.overrides = tuple(_text(override) for override in parsed)
        self._parsed, self._composed, self._values = parsed, composed, values

    def hydra_config(self) -> DictConfig:
        """The full config of the job, as Hydra's launchers hand it to ``run_job``.

        Returns:
            What Hydra's ``load_sweep_config`` gives for the overrides, with the job's number.
        """
        cfg = self._composed.copy_with(self._values)
        task = [override for override in self._parsed if not override.is_hydra_override()]
        job = cfg.hydra.job
        with open_dict(cfg.hydra):
            cfg.hydra.overrides.task = [_text(override) for override in task]
            if "override_dirname:}" not in str(job._get_node("override_dirname")._value()):
                # Hydra 1.4 has a resolver there instead.
                job.override_dirname = _override_dirname(task, job.config.override_dirname)
            job.id, job.num = str(self.number), self.number
        return cfg


class Composer:
    """Composes jobs from their overrides.

    Args:
        loader: Hydra's, which composes.
        config: The sweep's own config.
    """

    def __init__(self, loader: ConfigLoader, config: DictConfig) -> None:
        self._loader, self._config = loader, config
        self._parser = OverridesParser.create(config_loader=loader)
        self._parsed: dict[str, Override] = {}
        self._plain: dict[str, bool] = {}
        self._composed: dict[tuple[str, ...], _Composed] = {}
        self._groups: dict[str, bool] = {}

    def job(self, number: int, overrides: Sequence[str]) -> Job:
        """Compose a job.

        Args:
            number: Hydra's number of the job.
            overrides: The job's overrides.

        Returns:
            The job, equal to what Hydra composes from the overrides.

        Raises:
            UserError: A value is missing or makes no sense; the message ends with the overrides.
            HydraException: An override has no meaning, or a value is of the wrong type.
        """
        parsed = [self._parse(text) for text in overrides]
        composed, values = self._split(parsed)
        try:
            settings = composed.settings_with(values)
        except UserError as error:
            raise UserError(f"{error} (in the run {' '.join(overrides)})") from error
        except OmegaConfBaseException:
            self._by_hydra(overrides)  # refuses the same value, in Hydra's words
            raise
        return Job(number, parsed, composed, values, settings)

    def _split(self, parsed: Sequence[Override]) -> tuple["_Composed", dict[str, Any]]:
        """What Hydra has to compose of a job, and the plain values to set on that."""
        overlapping = _overlapping(
            tuple(one.key_or_group for one in parsed if not self._is_group(one.key_or_group))
        )
        structure: list[Override] = []
        plain: list[Override] = []
        for one in parsed:
            is_value = self._plain[_text(one)] and one.key_or_group not in overlapping
            (plain if is_value else structure).append(one)
        composed = self._compose(structure)
        new = [one for one in plain if not composed.has(one.key_or_group)]
        if new:  # Hydra knows what to do with these
            composed = self._compose([*structure, *new])
        return composed, {one.key_or_group: one.value() for one in plain if one not in new}

    def _parse(self, text: str) -> Override:
        if text not in self._parsed:
            self._parsed[text] = self._parser.parse_override(text)
            self._plain[text] = self._is_plain(self._parsed[text])
        return self._parsed[text]

    def _is_plain(self, override: Override) -> bool:
        """Whether an override sets a key of the settings to a value that refers to nothing."""
        if override.is_add() or override.is_force_add() or override.is_delete():
            return False
        if override.is_hydra_override() or override.is_sweep_override() or override.package:
            return False
        value = override.value()
        if isinstance(value, dict):  # Hydra merges a mapping into what is there
            return False
        text = str(value)
        return not ("${" in text or "???" in text or self._is_group(override.key_or_group))

    def _is_group(self, key: str) -> bool:
        if key not in self._groups:
            self._groups[key] = bool(self._loader.get_group_options(key))
        return self._groups[key]

    def _compose(self, overrides: Iterable[Override]) -> "_Composed":
        texts = tuple(_text(override) for override in overrides)
        if texts not in self._composed:
            self._composed[texts] = _Composed(self._by_hydra(texts))
        return self._composed[texts]

    def _by_hydra(self, overrides: Iterable[str]) -> DictConfig:
        return self._loader.load_sweep_config(self._config, list(overrides))


class _Composed:
    """What Hydra composed for some overrides, and the results of setting values on it.

    Args:
        cfg: The config, its ``hydra`` node included.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self._cfg = cfg
        self._scratch = _without_hydra(cfg)
        raw = OmegaConf.to_container(self._scratch, resolve=False)
        assert isinstance(raw, dict)
        direct = {str(key): _words_of_references(value) for key, value in raw.items()}
        names = [one.name for one in fields(HeftConfig) if one.name in direct]
        self._affected_by = {name: _closure(name, direct) for name in names}
        self._incomplete = bool(OmegaConf.missing_keys(self._scratch))
        self._sections: dict[tuple[Any, ...], Any] = {}
        self._originals: dict[str, Any] = {}

    def has(self, key: str) -> bool:
        """Whether there is a key for a value in one of the config's mappings."""
        parent, _, last = key.rpartition(".")
        holder = OmegaConf.select(self._cfg, parent) if parent else self._cfg
        if not isinstance(holder, DictConfig):
            return False
        return holder._get_node(last, validate_access=False) is not None

    def settings_with(self, values: dict[str, Any]) -> HeftConfig:
        """The checked settings with some values set."""
        given = [(key, key.split(".", 1)[0], repr(value)) for key, value in sorted(values.items())]
        identities = {
            name: (name, *((key, text) for key, top, text in given if top in reach))
            for name, reach in self._affected_by.items()
        }
        new = {name: one for name, one in identities.items() if one not in self._sections}
        if new:
            self._set(values)
        if not self._sections:
            typed(self._scratch)  # refuses what is wrong with the config as a whole
        made = {one: self._section(name) for name, one in new.items()}
        known = ChainMap(made, self._sections)
        settings = HeftConfig(**{name: known[one] for name, one in identities.items()})
        if new:
            check(settings)
            self._sections |= made  # sections that are kept have been checked
        else:
            settings.check("")
        return settings

    def copy_with(self, values: dict[str, Any]) -> DictConfig:
        """A copy of the whole config with some values set."""
        cfg = copy.deepcopy(self._cfg)
        for key, value in values.items():
            OmegaConf.update(cfg, key, value)
        return cfg

    def _section(self, name: str) -> Any:
        node = OmegaConf.select(self._scratch, name)
        return OmegaConf.to_object(node) if OmegaConf.is_config(node) else node

    def _set(self, values: dict[str, Any]) -> None:
        """Set values on the scratch config, and undo those of other jobs."""
        for key in values:
            if key not in self._originals:
                parent, _, last = key.rpartition(".")
                holder = OmegaConf.select(self._scratch, parent) if parent else self._scratch
                self._originals[key] = copy.deepcopy(holder._get_node(last))
        for key, original in self._originals.items():
            OmegaConf.update(self._scratch, key, values.get(key, original), merge=False)
        if self._incomplete and OmegaConf.missing_keys(self._scratch):
            typed(self._scratch)  # says which value is missing


def _text(override: Override) -> str:
    assert override.input_line is not None  # it was parsed from a text
    return override.input_line


def _override_dirname(overrides: Iterable[Override], layout: DictConfig) -> str:
    """Hydra 1.3's ``hydra.job.override_dirname``, which it makes by itself while it composes."""
    kept = (_text(one) for one in overrides if one.key_or_group not in layout.exclude_keys)
    return str(layout.item_sep).join(sorted(kept)).replace("=", layout.kv_sep)


@functools.cache
def _overlapping(keys: tuple[str, ...]) -> frozenset[str]:
    """The keys that are given more than once or lie within another: their order counts."""
    return frozenset(
        key
        for number, key in enumerate(keys)
        for other_number, other in enumerate(keys)
        if number != other_number
        and f"{key}.".startswith(f"{other}.") | f"{other}.".startswith(f"{key}.")
    )


def _without_hydra(job: DictConfig) -> DictConfig:
    cfg = copy.deepcopy(job)
    with read_write(cfg), open_dict(cfg):
        del cfg["hydra"]
    return cfg


def _words_of_references(value: Any) -> set[str]:
    """All words in a raw config node's interpolations: the keys that they mention, and more."""
    if isinstance(value, str):
        return set(_WORD.findall(value)) if "${" in value else set()
    if not isinstance(value, dict | list):
        return set()
    parts = value.values() if isinstance(value, dict) else value
    return set().union(*map(_words_of_references, parts))


def _closure(key: str, direct: dict[str, set[str]]) -> set[str]:
    """A key and all that it depends on, directly or not."""
    reached, waiting = set[str](), [key]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting.extend(direct.get(name, ()))
    return reached
