"""What Hydra and OmegaConf refuse while they compose, said in the words of the settings.

Their messages name classes and their own options. Here they become one line that names the setting,
what it takes, and what to type instead.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from omegaconf import MISSING

from heft_pipeline.declare_settings import Bounds, is_section
from heft_pipeline.settings.schema import HeftConfig, config_dir

_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "dict": "a mapping",
}
#: What Hydra's groups hold besides choices: the schemas that the choices' files build on.
_SCHEMAS = "_schema"
_KEY = re.compile(r"full_key: (\S+)")
_OVERRIDE = re.compile(r"Error merging override (.+)")
_UNKNOWN = re.compile(r"Could not override '([^']+)'")
_NO_CHOICE = re.compile(r"Could not find '(.+)/([^/']*)'")
_AMBIGUOUS = re.compile(r"Ambiguous value for argument '(.+)'")


def explained(error: BaseException, arguments: Sequence[str]) -> str | None:
    """Say what Hydra or OmegaConf refused.

    Args:
        error: What they raised.
        arguments: The command line's.

    Returns:
        One line; None for an error that is not theirs.
    """
    names = {base.__name__ for base in type(error).__mro__}
    group = isinstance(error, ValueError) and "Config group override must be" in str(error)
    if group:
        return _no_name(arguments)
    if not names & {"HydraException", "OmegaConfBaseException"}:
        return None
    said = str(error)
    if error.__cause__ is not None and str(error.__cause__) not in said:
        said += f"\n{error.__cause__}"
    # What a rule of this project's refused while a value was looked up is in its words already.
    if found := re.search(r"UserError raised while resolving interpolation: (.*)", said):
        return found[1]
    if found := _AMBIGUOUS.search(said):
        key = found[1].partition("=")[0]
        return (
            f"{found[1]} holds several values: sweep over them with -m, write a list as "
            f"{key}=[A,B], or put a text with commas into quotes within quotes"
        )
    if "OverrideParseException" in names:
        return _unreadable(getattr(error, "override", None), said)
    if found := _NO_CHOICE.search(said):
        return _no_choice(found[1], found[2], getattr(error, "options", None) or ())
    if "No match in the defaults list" in said and (found := _UNKNOWN.search(said)):
        given = next((one for one in arguments if one.startswith(f"{found[1]}=")), found[1])
        return f"{given} chooses what is not there by default; add it with +{given}"
    if found := _UNKNOWN.search(said):
        return unknown(found[1])
    key = found[1] if (found := _KEY.search(said)) else ""
    if found := _OVERRIDE.search(said):
        return _refused(found[1], key, said)
    first = said.strip().splitlines()[0].rstrip(".")
    if "nterpolation" in first:
        given = next((one for one in arguments if "${" in one), key)
        return f"{given}: {first}; ${{NAME}} stands for the value of the setting NAME"
    return f"{key}: {first}" if key else first


def unknown(key: str) -> str:
    """The message for a key that is no setting's.

    Args:
        key: The whole key, e.g. ``lora.rnk``.

    Returns:
        It with the nearest one that there is.
    """
    if key.startswith("hydra."):
        return f"{key} is no key of Hydra's or of its launcher's; --cfg hydra shows all"
    section, _, name = key.rpartition(".")
    owner = _declared(section) if section else HeftConfig
    kind: Any = owner if isinstance(owner, type) else owner.type if owner is not None else None
    if not dataclasses.is_dataclass(kind):
        return unknown(section) if owner is None else f"{key} is not a setting: {section} is one"
    known = [one.name for one in dataclasses.fields(kind) if "bounds" in one.metadata
             or is_section(one)]  # fmt: skip
    prefix = f"{section}." if section else ""
    close = difflib.get_close_matches(name, known, n=1)
    advice = f"did you mean {prefix}{close[0]}?" if close else f"there are {', '.join(known)}"
    return f"{key} is not a setting; {advice}"


def _refused(override: str, key: str, said: str) -> str:
    """The message for a value that a setting does not take."""
    one = _declared(key)
    if "is not a ListConfig" in said:
        return f"{override}: {key} is a list: write it in brackets, e.g. {key}=[a,b]"
    if "does not support deletion" in said:
        return f"{override}: a setting cannot be taken out; give it a value, {key}=..."
    if one is None or isinstance(one, type) or "bounds" not in one.metadata:
        lines = said.strip().splitlines()
        return f"{override}: {lines[1] if len(lines) > 1 else lines[0]}"
    return f"{override}: {key} must be {_wanted(one)}{_example(key, one)}"


def _wanted(one: "dataclasses.Field[Any]") -> str:
    bounds: Bounds = one.metadata["bounds"]
    names = [part.strip() for part in str(getattr(one.type, "__name__", one.type)).split("|")]
    kinds = [_TYPES.get(name, "a list" if name.startswith("list") else "") for name in names]
    allowed = bounds.describe()
    if bounds.choices and not bounds.numeric:
        words = f"one of {', '.join(bounds.choices)}"
    else:
        words = " or ".join(filter(None, kinds)) or "another value"
        # The bounds say that it is a number where it may be a word as well.
        words = f"{words} {allowed}" if allowed and not bounds.choices else allowed or words
    return f"{words}, or null" if "None" in names else words


def _example(key: str, one: "dataclasses.Field[Any]") -> str:
    example = one.metadata["example"]
    if isinstance(example, list | tuple):
        example = f"[{','.join(map(str, example))}]" if example else None
    if isinstance(example, bool):
        example = str(example).lower()
    shown = example is not None and example != MISSING and not isinstance(example, dict)
    return f", e.g. {key}={example}" if shown and str(example).isprintable() else ""


def _unreadable(override: str | None, said: str) -> str:
    """The message for what is no override at all."""
    named = re.search(r"Error parsing override '(.*)'", said)
    given = override or (named[1] if named else None)
    return (
        f"{given if given else 'an argument'} cannot be read; write KEY=VALUE, and put a value "
        "with special characters into quotes within quotes, e.g. \"data.prompt='{question}?'\""
    )


def _no_choice(group: str, name: str, options: Iterable[str]) -> str:
    choices = [option for option in options if not option.endswith(_SCHEMAS)]
    close = difflib.get_close_matches(name, choices, n=1)
    hint = f"; did you mean {group}={close[0]}?" if close else ""
    return f"{group}={name} is not one of {', '.join(choices)}{hint}"


def _no_name(arguments: Sequence[str]) -> str:
    """The message for a group of files, such as ``lora``, that was given no file's name."""
    for given in arguments:
        group, _, value = given.lstrip("+").partition("=")
        folder = config_dir() / group
        names = sorted(file.stem for file in folder.glob("*.yaml")) if folder.is_dir() else []
        if names and value not in names:
            return f"{_no_choice(group, value, names)}; a single value is set as {group}.NAME=VALUE"
    return "a group of settings was given no name of a file in conf/; --help lists the names"


def _declared(key: str) -> Any:
    """The declaration of a setting or a section; None if there is none."""
    kind: Any = HeftConfig
    found: Any = None
    for name in key.split("."):
        if not dataclasses.is_dataclass(kind):
            return None
        fields = {one.name: one for one in dataclasses.fields(kind)}
        if name not in fields:
            return None
        found = fields[name]
        kind = found.type
    return found
