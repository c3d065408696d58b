"""What a stage is made of, and its identity.

A :class:`StageSpec` holds everything that training one adapter needs. Fields marked with
``NOT_IDENTITY`` say where things are or how fast they go; every other field can change the
stage's result and enters its fingerprint.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

#: Raised when a change of the code changes what a stage with the same spec computes.
RESULT_VERSION = 2

NOT_IDENTITY: Mapping[str, Any] = {"identity": False}


@dataclass(frozen=True)
class ModelSpec:
    """A frozen base model.

    Attributes:
        id: A hub repository or an absolute local folder.
        revision: The commit to load from the hub; None for a folder.
        name: What tables call it.
        content: What the weights are: ``sha256:...`` of a folder, ``hub:ID@COMMIT``.
        dtype: ``float32`` or ``bfloat16``, or ``auto`` for what the checkpoint is stored in.
        quantization: ``nf4`` keeps the frozen weights in 4 bits, ``none`` in ``dtype``.
        attn_implementation: transformers' name of the attention kernel, ``grouped`` or ``auto``.
        trust_remote_code: Whether the repository's own code may run.
    """

    id: str = field(metadata=NOT_IDENTITY)
    revision: str | None = field(metadata=NOT_IDENTITY)
    name: str = field(metadata=NOT_IDENTITY)
    content: str
    dtype: str
    quantization: str
    attn_implementation: str
    trust_remote_code: bool = field(metadata=NOT_IDENTITY)


@dataclass(frozen=True)
class DataSpec:
    """A task: rows, prompt and answer choices. See ``DataConfig`` for the fields.

    Attributes:
        location: A hub data set or an absolute local folder.
        revision: The commit to load from the hub; None for a folder.
        name: What tables call it.
        content: What the rows are: ``sha256:...`` of a folder, ``hub:ID@COMMIT``.
        choices: Pairs of label and scored text, in the configured order.
    """

    location: str = field(metadata=NOT_IDENTITY)
    revision: str | None = field(metadata=NOT_IDENTITY)
    name: str = field(metadata=NOT_IDENTITY)
    content: str
    subset: str | None
    train_split: str
    dev_split: str | None
    eval_split: str
    dev_size: float
    max_train_rows: int | None
    max_eval_rows: int | None
    prompt: str
    answer_column: str
    choices: tuple[tuple[str, str], ...]
    id_column: str | None
    truncate_column: str | None
    max_prompt_tokens: int

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the choices, in order."""
        return tuple(label for label, _ in self.choices)


@dataclass(frozen=True)
class LoraSpec:
    """A LoRA adapter (PEFT's terms) and its optimiser settings.

    Attributes:
        init_content: ``sha256:...`` of the folder that training starts from, or None.
    """

    rank: int
    alpha: float
    dropout: float
    target_modules: str | tuple[str, ...]
    use_rslora: bool
    init_from: str | None = field(metadata=NOT_IDENTITY)
    init_content: str | None
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class ReftSpec:
    """ReFT interventions (pyreft's terms) and their optimiser settings.

    Attributes:
        layers: ``all`` or layer numbers from 0.
        reuse: ``auto`` or ``off``; with ``reuse_budget_gib`` it decides which activations are
            computed together, and with that their rounding.
        merge_parent: Whether the LoRA adapters that it stands on are added to the weights.
        init_content: ``sha256:...`` of the folder that training starts from, or None.
    """

    intervention: str
    rank: int
    layers: str | tuple[int, ...]
    positions: str
    share_weights: bool
    dropout: float
    add_bias: bool
    engine: str
    reuse: str
    reuse_budget_gib: float
    merge_parent: bool
    init_from: str | None = field(metadata=NOT_IDENTITY)
    init_content: str | None
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class TrainingSpec:
    """How long and in which steps a stage is trained. See ``TrainingConfig``.

    Attributes:
        batch_size: Examples an optimiser step (the effective batch).
        warmup_ratio: Share of all steps over which the learning rate rises from 0.
        micro_batch_tokens: Most padded tokens in one forward pass, or ``auto``; it decides how a
            batch is split, and with it dropout masks and rounding.
    """

    epochs: int
    batch_size: int
    warmup_ratio: float
    lr_scheduler: str
    max_grad_norm: float
    selection: str
    early_stopping_patience: int | None
    micro_batch_tokens: int | str
    gradient_checkpointing: bool
    compile: bool
    log_every_steps: int = field(metadata=NOT_IDENTITY)
    checkpoint_every_seconds: float = field(metadata=NOT_IDENTITY)


@dataclass(frozen=True)
class EvaluationSpec:
    """How answers are scored: ``logprob`` or ``generate``."""

    mode: str
    batch_size: int = field(metadata=NOT_IDENTITY)


@dataclass(frozen=True)
class StageSpec:
    """One training of one adapter on a frozen parent.

    Attributes:
        kind: ``lora``, ``reft``, ``joint`` (both adapters at once), or ``base`` (nothing is
            trained; the untouched model is evaluated).
        parent: The stage it is trained on; None for the bare base model.
        lora: Set for ``lora`` and ``joint``.
        reft: Set for ``reft`` and ``joint``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    """

    kind: str
    model: ModelSpec
    data: DataSpec
    lora: LoraSpec | None
    reft: ReftSpec | None
    training: TrainingSpec | None
    evaluation: EvaluationSpec
    seed: int
    parent: "StageSpec | None"
    device: str = field(metadata=NOT_IDENTITY)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that equal specs share; see :func:`fingerprint`."""
        return fingerprint(self)

    @property
    def chain(self) -> tuple["StageSpec", ...]:
        """The stages from the first on the base model to this one."""
        return (*(self.parent.chain if self.parent else ()), self)

    @property
    def label(self) -> str:
        """A short name for people, e.g. ``lora@3 > reft@3 r8 s0``."""
        last = self.chain[-1]
        kinds = " > ".join(
            f"{s.kind}@{s.training.epochs}" if s.training else s.kind for s in self.chain
        )
        rank = last.lora.rank if last.lora else last.reft.rank if last.reft else None
        return " ".join(filter(None, [kinds, f"r{rank}" if rank else "", f"s{self.seed}"]))


def identity(spec: Any) -> Any:
    """What of a spec decides the result, as JSON-ready data.

    Args:
        spec: A spec dataclass, or a value inside one.

    Returns:
        The identity fields; a parent stage stands as its fingerprint.
    """
    if dataclasses.is_dataclass(spec) and not isinstance(spec, type):
        return {
            f.name: value.fingerprint
            if isinstance(value := getattr(spec, f.name), StageSpec)
            else identity(value)
            for f in dataclasses.fields(spec)
            if f.metadata.get("identity", True)
        }
    return [identity(v) for v in spec] if isinstance(spec, tuple) else spec


def fingerprint(stage: StageSpec) -> str:
    """Hash everything that can change a stage's result, its parent's fingerprint included.

    Args:
        stage: Any stage.

    Returns:
        The first 16 hex digits of a SHA-256.
    """
    made_of = {"version": RESULT_VERSION, **identity(stage)}
    text = json.dumps(made_of, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def to_json(stage: StageSpec) -> dict[str, Any]:
    """Everything a stage was asked with, as JSON-ready data (parents nested).

    Args:
        stage: Any stage.

    Returns:
        A dictionary that :func:`from_json` turns back into an equal stage.
    """
    return {"fingerprint": stage.fingerprint, "version": RESULT_VERSION} | dataclasses.asdict(stage)


def from_json(data: Mapping[str, Any]) -> StageSpec:
    """Read what :func:`to_json` wrote.

    Args:
        data: The decoded JSON.

    Returns:
        The stage.
    """

    def made(kind: Any, values: Mapping[str, Any] | None) -> Any:
        if values is None:
            return None
        names = [f.name for f in dataclasses.fields(kind)]
        return kind(**{name: _tuples(values[name]) for name in names})

    return StageSpec(
        kind=data["kind"],
        model=made(ModelSpec, data["model"]),
        data=made(DataSpec, data["data"]),
        lora=made(LoraSpec, data["lora"]),
        reft=made(ReftSpec, data["reft"]),
        training=made(TrainingSpec, data["training"]),
        evaluation=made(EvaluationSpec, data["evaluation"]),
        seed=data["seed"],
        parent=from_json(data["parent"]) if data["parent"] else None,
        device=data["device"],
    )


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
