"""The names of a sweep's runs: unique, short, and saying what differs.

A run's identity is its stages and what the table shows of it. Its name is for people: runs that
would have the same one are told apart by the settings in which they differ.
"""

import dataclasses
import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from heft_pipeline.plan.graph import Plan, Run, refuse_paths
from heft_pipeline.plan.stage_spec import StageSpec, from_json, to_json

#: The most characters of a name; it is a folder's, and W&B's run names have at most 128.
MOST_CHARACTERS = 100
_MOST_DIFFERENCES = 3
_MOST_VALUE = 24
_SHORT = {
    "learning_rate": "lr",
    "batch_size": "b",
    "weight_decay": "wd",
    "warmup_ratio": "warmup",
    "dropout": "drop",
    "target_modules": "on",
    "rank": "r",
    "epochs": "e",
    "max_train_rows": "rows",
}
#: What is left out where something else says the same in a form that people know.
_SAID_ELSEWHERE = ("content", "location", "id", "path", "revision", "init_content", "name")
#: What identifies a run in its sweep: its stages, and what the table shows of it besides.
_IDENTITY = ("method", "epochs", "seed", "model", "data", "stages")
_SCIENTIFIC_BELOW = 0.01
_NOT_SETTINGS = ("fingerprint", "version", "kind", "parent", "adapters")


def named(asked: Plan, known: Mapping[str, Any]) -> Plan:
    """Give runs their names in a sweep.

    Args:
        asked: Runs with their short names.
        known: The sweep's ``plan.json`` so far; empty for a new sweep.

    Returns:
        The plan with the runs' names in the sweep. A run that the sweep has already keeps the
        name that it has there; equal runs are one.
    """
    refuse_paths(known)
    entries: list[Mapping[str, Any]] = list(known.get("runs", []))
    names = {_identity(entry): str(entry["name"]) for entry in entries}
    new: dict[str, Run] = {}
    for run in asked.runs:
        short = dataclasses.replace(run, name=shortened(_plain(run.name)))
        new.setdefault(identity_of(run), short)
    taken = set(names.values())
    stages = known.get("stages", {})
    clashing: dict[str, list[str]] = {}
    for identity, run in new.items():
        if identity not in names:
            clashing.setdefault(run.name, []).append(identity)
    for name, identities in clashing.items():
        if len(identities) == 1 and name not in taken:
            names[identities[0]] = name
            taken.add(name)
            continue
        together = {one: _flat(new[one].last) for one in identities}
        others = [_chain(entry, stages) for entry in entries if _is_about(entry, name)]
        differing = _differing([*together.values(), *others])
        for identity, mine in together.items():
            full = shortened(_plain("-".join([name, *_differences(mine, differing)])))
            if full in taken:
                full = _told_apart(full, MOST_CHARACTERS, identity)
            names[identity] = full
            taken.add(full)
    runs = tuple(dataclasses.replace(run, name=names[key]) for key, run in new.items())
    return dataclasses.replace(asked, runs=runs)


def identity_of(run: Run) -> str:
    """What a run has in common with those that are the same one, whatever they are called."""
    return _identity(run.to_json())


def _identity(entry: Mapping[str, Any]) -> str:
    """A run's identity from its entry in ``plan.json``."""
    words = {key: entry.get(key) for key in _IDENTITY}
    return repr(sorted(words.items()))


def _is_about(entry: Mapping[str, Any], name: str) -> bool:
    """Whether an entry's name is a short name, or one that was made from it."""
    return str(entry["name"]) == name or str(entry["name"]).startswith(f"{name}-")


def _chain(entry: Mapping[str, Any], stages: Mapping[str, Any]) -> dict[str, Any]:
    return _flat(from_json(stages[entry["stages"][-1]]))


def _flat(last: StageSpec) -> dict[str, Any]:
    """Every setting of a run's stages; those of adapters by stage and kind."""
    found: dict[str, Any] = {}
    for number, stage in enumerate(last.chain):
        data = to_json(stage)
        for adapter in data["adapters"]:
            for key, value in adapter.items():
                found[f"{number}.{adapter['kind']}.{key}"] = value
        for section, values in data.items():
            if section in _NOT_SETTINGS:
                continue
            inner = values if isinstance(values, dict) else {"": values}
            for key, value in inner.items():
                found[f"{section}.{key}".rstrip(".")] = value
    return found


def _differing(together: Sequence[Mapping[str, Any]]) -> set[str]:
    """The settings that are not the same in all of some runs."""
    first, *others = together
    keys = dict.fromkeys(key for one in together for key in one)
    return {key for key in keys if any(one.get(key) != first.get(key) for one in others)}


def _differences(mine: Mapping[str, Any], differing: Collection[str]) -> list[str]:
    """A run's values of the settings in which some runs differ, e.g. ``lr1e-3``."""
    own = [key for key in mine if key in differing]
    telling = [key for key in own if key.split(".")[-1] not in _SAID_ELSEWHERE]
    telling += [key for key in own if key in ("model.name", "data.name")]
    chosen = telling or own
    kinds = {key.split(".")[1] for key in chosen if key[0].isdigit()}
    words = list(dict.fromkeys(_said(key, mine[key], len(kinds) > 1) for key in chosen))
    if len(words) > _MOST_DIFFERENCES:
        rest = hashlib.sha256("-".join(words).encode()).hexdigest()[:6]
        return [*words[: _MOST_DIFFERENCES - 1], rest]
    return words


def _said(key: str, value: Any, with_kind: bool) -> str:
    *_, section, last = f".{key}".split(".")
    if key in ("model.name", "data.name"):
        return _value(value).removeprefix("=")
    prefix = f"{section}." if with_kind and key[0].isdigit() else ""
    return f"{prefix}{_SHORT.get(last, last)}{_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return f"={value}".lower()
    if isinstance(value, float):
        if 0 < abs(value) < _SCIENTIFIC_BELOW:
            mantissa, _, exponent = f"{value:.3e}".partition("e")
            return f"{float(mantissa):g}e{int(exponent)}"
        return f"{value:g}"
    text = "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    if len(text) > _MOST_VALUE or not text:
        text = hashlib.sha256(repr(value).encode()).hexdigest()[:6]
    return text if isinstance(value, int) else f"={text}"


def _plain(name: str) -> str:
    """A name with the characters alone that every file system and tracker takes."""
    return re.sub(r"[^A-Za-z0-9_.+=-]", "_", name)


def shortened(text: str, most: int = MOST_CHARACTERS) -> str:
    """A name that is short enough: the text, or its beginning and what tells it from others.

    Args:
        text: The text.
        most: The most characters.

    Returns:
        The text if it is short enough; else its beginning and 8 hex digits of its SHA-256.
    """
    return text if len(text) <= most else _told_apart(text, most, text)


def _told_apart(name: str, most: int, by: str) -> str:
    return f"{name[: most - 9]}-{hashlib.sha256(by.encode()).hexdigest()[:8]}"


def added(known: Mapping[str, Any], asked: Iterable[Run]) -> str:
    """What a command adds to a sweep that exists, in words.

    Args:
        known: The sweep's ``plan.json`` before.
        asked: The runs that are asked for now, with their names.

    Returns:
        A sentence; empty for a new sweep.
    """
    before = [str(entry["name"]) for entry in known.get("runs", [])]
    if not before:
        return ""
    names = [run.name for run in asked]
    new = [name for name in names if name not in before]
    said = f"sweep {known['sweep']} has {len(before)} run{'s' if len(before) != 1 else ''} already"
    if new:
        shown = ", ".join(new[:5]) + (f" and {len(new) - 5} more" if len(new) > 5 else "")
        said += f"; {len(new)} {'is' if len(new) == 1 else 'are'} added ({shown})"
    if again := len(names) - len(new):
        said += f"; {again} {'is' if again == 1 else 'are'} asked for again"
    return said
