"""What a stage is made of, and what identifies it.

A :class:`StageSpec` holds everything that is needed to train a stage's adapters. Its fingerprint
covers everything that can change the result; each setting's declaration says whether it can.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from heft_pipeline.adapters.kind import AdapterSettings, kinds
from heft_pipeline.data.answer_text import AnswerText
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.declare_settings import identity
from heft_pipeline.errors import UserError
from heft_pipeline.models.settings import ModelSettings
from heft_pipeline.scoring.settings import EvaluationSettings
from heft_pipeline.training.settings import TrainingSettings

#: Increased whenever a change to the code alters what a stage with the same settings computes, or
#: what a fingerprint is made of.
RESULT_VERSION = 5


@dataclass(frozen=True)
class StageSpec:
    """One training of one or more adapters on a frozen parent.

    Attributes:
        model: The frozen base model, located.
        data: The task, located.
        adapters: The resolved settings of the adapters to train; several are trained at once. Empty
            for the untouched model, which is only evaluated.
        training: How they are trained; None if nothing is trained.
        evaluation: How answers are scored.
        seed: The seed of initialisation, order, dropout and the dev split.
        parent: The stage that this one is trained on; None for the bare base model.
        device: Where to compute, which cannot change what a result means.
    """

    model: ModelSettings
    data: DataSettings
    adapters: tuple[AdapterSettings, ...]
    training: TrainingSettings | None
    evaluation: EvaluationSettings
    seed: int
    parent: "StageSpec | None"
    device: str

    @cached_property
    def fingerprint(self) -> str:
        """The first 16 hex digits of a SHA-256 of everything that can change the result."""
        text = json.dumps(made_of(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def kind(self) -> str:
        """Its name for people: the adapter's kind, ``joint`` for several, ``base`` for none."""
        if len(self.adapters) > 1:
            return "joint"
        return self.adapters[0].kind if self.adapters else "base"

    @property
    def name(self) -> str:
        """What it trains, e.g. ``lora`` or ``lora+reft``; empty for nothing."""
        return "+".join(adapter.kind for adapter in self.adapters)

    @property
    def title(self) -> str:
        """What is trained, for people, e.g. ``LoRA`` or ``LoRA and ReFT at once``."""
        titles = " and ".join(adapter.title for adapter in self.adapters) or "untouched"
        return f"{titles} at once" if len(self.adapters) > 1 else titles

    @property
    def epochs(self) -> int:
        """How many epochs it is trained for; 0 if nothing is trained."""
        return self.adapters[0].epochs if self.adapters else 0

    @property
    def rank(self) -> int | None:
        """The rank of the first adapter that has one; None if none has."""
        return next((a.low_rank for a in self.adapters if a.low_rank is not None), None)

    @property
    def trained_answers(self) -> AnswerText:
        """How the answers are written that it is trained on; as scored if nothing is trained.

        The end token follows those that a model has to write itself, or it would not learn to stop.
        """
        answer = self.adapters[0].answer_text if self.adapters else self.scored_answers
        return dataclasses.replace(answer, end_token=answer.end_token or self.data.written)

    @property
    def scored_answers(self) -> AnswerText:
        """How the answers are written that are scored."""
        return AnswerText(self.evaluation.answer)

    @property
    def merges_parents(self) -> bool:
        """Whether its parents are added to the frozen weights while it is trained and scored.

        Merging replaces the forward pass of the modules that a weight-space adapter is trained in,
        so only a stage that trains nothing but edits does it.
        """
        return all(adapter.edits for adapter in self.adapters) and any(
            adapter.merges_parents for adapter in self.adapters
        )

    @property
    def chain(self) -> tuple["StageSpec", ...]:
        """All stages from the first one on the base model up to this one."""
        return (*(self.parent.chain if self.parent else ()), self)

    @property
    def label(self) -> str:
        """A short name for people, e.g. ``lora@3 > reft@3 r8 s0``."""
        names = " > ".join(f"{s.name}@{s.epochs}" if s.epochs else s.kind for s in self.chain)
        return " ".join(
            filter(None, [names, f"r{self.rank}" if self.rank else "", f"s{self.seed}"])
        )


def made_of(stage: StageSpec) -> dict[str, Any]:
    """Everything that can change a stage's result, as JSON-ready data.

    A parent is represented by its fingerprint.
    """
    return {
        "version": RESULT_VERSION,
        "model": identity(stage.model),
        "data": identity(stage.data),
        "adapters": [[adapter.kind, identity(adapter)] for adapter in stage.adapters],
        "training": identity(stage.training),
        "evaluation": identity(stage.evaluation),
        "seed": stage.seed,
        "parent": stage.parent.fingerprint if stage.parent else None,
    }


def to_json(stage: StageSpec) -> dict[str, Any]:
    """All settings of a stage and its parents, as JSON-ready data for :func:`from_json`."""
    return {
        "fingerprint": stage.fingerprint,
        "version": RESULT_VERSION,
        "kind": stage.kind,
        "model": dataclasses.asdict(stage.model),
        "data": dataclasses.asdict(stage.data),
        "adapters": [{"kind": a.kind} | dataclasses.asdict(a) for a in stage.adapters],
        "training": dataclasses.asdict(stage.training) if stage.training else None,
        "evaluation": dataclasses.asdict(stage.evaluation),
        "seed": stage.seed,
        "parent": to_json(stage.parent) if stage.parent else None,
        "device": stage.device,
    }


def from_json(data: Mapping[str, Any]) -> StageSpec:
    """Turn the decoded output of :func:`to_json` back into an equal stage.

    Raises:
        UserError: Another version wrote it, or it has a kind of adapter that is not installed.
    """
    require_version(data)
    for adapter in data["adapters"]:
        if adapter["kind"] not in kinds():
            raise UserError(
                f"stage {data['fingerprint']} holds an adapter of the kind {adapter['kind']}, "
                f"which this installation does not have; it has {', '.join(kinds())}"
            )
    training = data["training"]
    return StageSpec(
        model=_made(ModelSettings, data["model"]),
        data=_made(DataSettings, data["data"]),
        adapters=tuple(_made(kinds()[a["kind"]], a) for a in data["adapters"]),
        training=_made(TrainingSettings, training) if training else None,
        evaluation=_made(EvaluationSettings, data["evaluation"]),
        seed=data["seed"],
        parent=from_json(data["parent"]) if data["parent"] else None,
        device=data["device"],
    )


def require_version(data: Mapping[str, Any]) -> None:
    """Refuse the decoded JSON of a stage that another version of this project wrote.

    Raises:
        UserError: The message names both versions and says what to do.
    """
    version = data.get("version", "unknown")
    if version != RESULT_VERSION:
        raise UserError(
            f"stage {data.get('fingerprint', '')} has store version {version}, but this version "
            f"of heft_pipeline reads {RESULT_VERSION}; read it with the version that wrote it, or "
            "run the sweep's command again, which trains new stages beside the old ones"
        )


def _made(kind: Any, values: Mapping[str, Any]) -> Any:
    # A setting that is newer than the file cannot change a result, or the version would be another.
    return kind(
        **{one.name: values[one.name] for one in dataclasses.fields(kind) if one.name in values}
    )
