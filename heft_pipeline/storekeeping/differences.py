"""What makes two stages different, and which finished stages are almost what is asked for."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heft_pipeline.plan.stage_spec import StageSpec, made_of

_CONTENTS = {
    "model.content": "the files of the model",
    "data.content": "the files of the data",
}
#: A change of a rank often changes what is derived from it, too.
_MOST_DIFFERENCES = 2
#: Values longer than this are cut where people read them.
_LONGEST = 60


@dataclass(frozen=True)
class Difference:
    """A setting, or the content of files, in which two stages differ.

    Attributes:
        key: The setting as it is given on the command line; ``parent.`` before those of parents.
        first: Its value in the first stage.
        second: Its value in the second stage.
    """

    key: str
    first: Any
    second: Any

    def __str__(self) -> str:
        """For people: ``lora.rank: 8 and 16``."""
        what = _CONTENTS.get(self.key.removeprefix("parent."))
        said = f"{self.key}: {_short(self.first)} and {_short(self.second)}"
        return f"{said} ({what} differ)" if what else said


def differences(first: StageSpec, second: StageSpec) -> list[Difference]:
    """What makes two stages' fingerprints differ.

    Args:
        first: A stage.
        second: Another.

    Returns:
        The settings and contents in which they, or the stages that they stand on, differ; empty
        for equal fingerprints.
    """
    one, two = _settings(first), _settings(second)
    keys = [*one, *(key for key in two if key not in one)]
    if one["adapters"] != two["adapters"]:  # each kind has settings of its own
        keys = [key for key in keys if key in one and key in two]
    found = [
        Difference(key, one.get(key, "unset"), two.get(key, "unset"))
        for key in keys
        if one.get(key) != two.get(key)
    ]
    if first.parent is None or second.parent is None:
        if first.parent is not second.parent:
            labels = [one.parent.label if one.parent else "none" for one in (first, second)]
            found.append(Difference("parent", *labels))
        return found
    return found + [
        Difference(f"parent.{one.key}", one.first, one.second)
        for one in differences(first.parent, second.parent)
        if one not in found  # a model and a task are those of all stages of a run
    ]


def _settings(stage: StageSpec) -> dict[str, Any]:
    """Everything that a stage's own part of a fingerprint is made of, by key."""
    found = dict(made_of(stage))
    del found["parent"]
    adapters = found.pop("adapters")
    found["adapters"] = "+".join(kind for kind, _ in adapters) or "none"
    return dict(_flat(found | dict(adapters)))


def _flat(data: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield before + key, value


@dataclass(frozen=True)
class NearTwin:
    """A finished stage that is almost one that will be trained.

    Attributes:
        asked: The stage that will be trained.
        finished: The finished one.
        differences: The one or two things in which they differ.
    """

    asked: StageSpec
    finished: StageSpec
    differences: Sequence[Difference]


def near_twin(
    to_train: Iterable[str], asked: Mapping[str, StageSpec], finished: Iterable[StageSpec]
) -> NearTwin | None:
    """Find a finished stage that is almost one that will be trained, which is worth a word.

    Args:
        to_train: The fingerprints of stages that will be trained.
        asked: All stages of a sweep, by fingerprint.
        finished: The finished stages of the store that the sweep does not ask for.

    Returns:
        The nearest; None if each differs in more than two things, or in what the sweep itself
        varies, such as seeds.
    """
    varied, nearest = _varied(asked.values()), None
    others = list(finished)
    for stage in (asked[key] for key in to_train):
        for other in others:
            if _place(other) != _place(stage):
                continue
            found = differences(stage, other)
            if {one.key.removeprefix("parent.") for one in found} & varied[_place(stage)]:
                continue
            if len(found) < (len(nearest.differences) if nearest else _MOST_DIFFERENCES + 1):
                nearest = NearTwin(stage, other, found)
    return nearest


def _place(stage: StageSpec) -> tuple[str, int]:
    """What stages have in common that are compared with each other."""
    return stage.name, len(stage.chain)


def _varied(stages: Iterable[StageSpec]) -> dict[tuple[str, int], set[str]]:
    """In which settings stages of the same place differ."""
    seen: dict[tuple[str, int], dict[str, Any]] = {}
    varied: dict[tuple[str, int], set[str]] = {}
    for stage in stages:
        first, found = seen.setdefault(_place(stage), {}), varied.setdefault(_place(stage), set())
        for part in stage.chain:
            for key, value in _settings(part).items():
                if first.setdefault(f"{len(part.chain)} {key}", value) != value:
                    found.add(key)
    return varied


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 15]}...{text[-12:]}"
