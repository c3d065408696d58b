"""The page ``docs/configuration.md``, generated from the settings' declarations."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import MISSING, OmegaConf

from heft_pipeline.declare_settings import Bounds, Settings, is_section, type_name
from heft_pipeline.settings.schema import HeftConfig, config_dir, register

_HEADER = """\
# Every setting

`python -m heft_pipeline.settings --markdown > docs/configuration.md` generates this page from the
settings' declarations; a test fails when it is out of date.

Set a value on the command line (`lora.rank=16`), sweep over several values with `-m`
(`lora.rank=4,8,16`), or put it in a YAML file of your own. The defaults on this page are those of a
run without any override; choosing a file in `conf/`, such as `data=boolq` or `reft=suffix`, sets
other values, and the file says where they come from. `${...}` is the value of another setting, and
`${tiny_or:${model.id},A,B}` is A for the shipped tiny model and B for any other model.

`hydra.sweeper.points` is a list of rows that are not a full product, each written as on the command
line: `"hydra.sweeper.points=['method=reft epochs=20','method=lora,heft epochs=3,6']"`. Every row is
combined with whatever else is swept over, e.g. `seed=0,1,2`.

A setting that *can change a result* is part of a stage's fingerprint: if you change it, a new
stage is trained. If you change any other setting, the finished stage is reused. Models, data sets
and adapters to start from are identified by their content, so their names and locations do not
matter.
"""
_COLUMNS = ("setting", "type", "default", "meaning", "allowed", "can change a result")


def markdown() -> str:
    """Return the page, with a section for each section of the config."""
    composed = _composed()
    parts = [_HEADER, "## The run\n", _table("", HeftConfig, composed, only_plain=True)]
    for one in dataclasses.fields(HeftConfig):
        if is_section(one):
            kind: Any = one.type
            parts += [
                f"## `{one.name}`: {_line(one.metadata['help'])}\n",
                _table(one.name, kind, composed),
            ]
    for name, kind in launchers().items():
        about = _line((kind.__doc__ or "").splitlines()[0])
        parts += [f"## `hydra/launcher={name}`: {about}\n", _table("hydra.launcher", kind, {})]
    return "\n".join(parts)


def launchers() -> dict[str, type[Settings]]:
    """Return the settings classes of this project's launchers, by launcher name."""
    Plugins.instance()  # imports the launchers
    nodes: Any = ConfigStore.instance().repo["hydra"]["launcher"]
    found = {}
    for name in ("local", "slurm"):
        kind = OmegaConf.get_type(nodes[f"{name}_schema.yaml"].node)
        assert kind is not None and issubclass(kind, Settings)
        found[name] = kind
    return found


def _composed() -> Any:
    """The config of a run without any override, with its references unresolved."""
    register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("config")


def _table(key: str, kind: type[Settings], composed: Any, only_plain: bool = False) -> str:
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * len(_COLUMNS)]
    for one in _settings(kind, only_plain):
        bounds: Bounds = one.metadata["bounds"]
        cells = (
            f"`{key}.{one.name}`" if key else f"`{one.name}`",
            type_name(one),
            _default(one, composed.get(key, composed)),
            one.metadata["help"],
            bounds.describe(),
            "yes" if one.metadata["identity"] else "no",
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _settings(kind: Any, only_plain: bool) -> Iterator["dataclasses.Field[Any]"]:
    for one in dataclasses.fields(kind):
        if "bounds" in one.metadata and not (only_plain and is_section(one)):
            yield one


def _default(one: "dataclasses.Field[Any]", section: Any) -> str:
    factory: Any = one.default_factory
    value = one.default if one.default is not dataclasses.MISSING else factory()
    if one.name in section:
        unresolved: Any = OmegaConf.to_container(section)
        value = unresolved[one.name]
    if value == MISSING:
        return "*must be given*"
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value).replace("\n", "\\n")


def _line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
