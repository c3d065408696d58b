"""The typed configuration.

Hydra composes ``conf/`` into :class:`HeftConfig`. The dataclasses are the schema: an unknown key
or a value of the wrong type is refused while composing. Nothing here imports torch.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from heft_pipeline.errors import UserError

STAGE_KINDS = ("lora", "reft", "joint")
INTERVENTIONS = ("loreft", "noreft", "consreft", "lobireft", "direft", "nodireft")
QUANTIZATIONS = ("none", "nf4")
DTYPES = ("auto", "float32", "bfloat16")
TRACKERS = ("none", "wandb", "tensorboard")
TRACKING_MODES = ("auto", "online", "offline", "disabled")
METHOD_NAMES = {
    (): "base",
    ("lora",): "lora",
    ("reft",): "reft",
    ("lora", "reft"): "heft",
    ("joint",): "joint",
}


@dataclass
class MethodConfig:
    """Which stages a run trains, in order."""

    stages: list[str] = MISSING


@dataclass
class ModelConfig:
    """The frozen base model."""

    id: str = MISSING
    revision: str = "main"
    name: str | None = None
    dtype: str = "auto"
    quantization: str = "none"
    attn_implementation: str = "auto"
    trust_remote_code: bool = False


@dataclass
class DataConfig:
    """The task: where its rows are, how a row becomes a prompt, which answers there are."""

    id: str | None = None
    path: str | None = None
    subset: str | None = None
    revision: str = "main"
    name: str | None = None
    train_split: str = "train"
    dev_split: str | None = None
    eval_split: str = "validation"
    dev_size: float = 0.1
    max_train_rows: int | None = None
    max_eval_rows: int | None = None
    prompt: str = MISSING
    answer_column: str = "answer"
    choices: dict[str, str] = MISSING
    id_column: str | None = None
    truncate_column: str | None = None
    max_prompt_tokens: int = 512


@dataclass
class LoraConfig:
    """The LoRA adapter and how it is trained."""

    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.05
    target_modules: Any = "all-linear"
    use_rslora: bool = False
    init_from: str | None = None
    epochs: int = 3
    batch_size: int = 16
    learning_rate: float = 3e-4
    weight_decay: float = 0.0
    warmup_ratio: float = 0.1


@dataclass
class ReftConfig:
    """The ReFT interventions and how they are trained."""

    intervention: str = "loreft"
    rank: int = 8
    layers: Any = "all"
    positions: str = "f7+l7"
    share_weights: bool = True
    dropout: float = 0.0
    add_bias: bool = False
    engine: str = "hooks"
    reuse: str = "auto"
    reuse_budget_gib: float = 16.0
    merge_parent: bool = False
    init_from: str | None = None
    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 9e-4
    weight_decay: float = 0.0
    warmup_ratio: float = 0.1


@dataclass
class JointConfig:
    """Training both adapters at once; shapes and learning rates are `lora`'s and `reft`'s."""

    epochs: int = 3
    batch_size: int = 32
    warmup_ratio: float = 0.1


@dataclass
class TrainingConfig:
    """What the training of every stage has in common."""

    lr_scheduler: str = "linear"
    max_grad_norm: float = 1.0
    selection: str = "best"
    early_stopping_patience: int | None = None
    micro_batch_tokens: Any = 16384
    gradient_checkpointing: bool = False
    compile: bool = False
    log_every_steps: int = 10
    checkpoint_every_seconds: float = 300.0


@dataclass
class EvaluationConfig:
    """How answers are scored."""

    mode: str = "logprob"
    batch_size: int = 64


@dataclass
class TrackingConfig:
    """Where runs are shown besides the store's own files."""

    name: str = "none"
    mode: str = "auto"
    project: str = "heft"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)
    log_predictions: bool = False
    log_adapter: bool = False
    finish_seconds: float = 60.0


@dataclass
class ReportConfig:
    """What the report compares."""

    claims: list[str] = field(default_factory=list)
    base_model: bool = True


@dataclass
class HeftConfig:
    """Everything a run is made from."""

    method: MethodConfig = field(default_factory=MethodConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    reft: ReftConfig = field(default_factory=ReftConfig)
    joint: JointConfig = field(default_factory=JointConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    epochs: int = 3
    rank: int = 8
    seed: int = 0
    output_dir: str = "outputs"
    sweep: str = MISSING
    device: str = "auto"


def method_name(stages: Iterable[str]) -> str:
    """The name of a list of stage kinds.

    Args:
        stages: Stage kinds in training order.

    Returns:
        ``lora``, ``reft``, ``heft`` or ``joint`` for those methods, ``base`` for no stages,
        else the kinds joined with ``+`` (``reft+lora``).
    """
    kinds = tuple(stages)
    return METHOD_NAMES.get(kinds, "+".join(kinds))


def run_name(number: int, stages: Iterable[str], epochs: int, rank: int, seed: int) -> str:
    """The name of a run's folder in its sweep.

    Args:
        number: Hydra's number of the job, unique in the sweep.
        stages: Stage kinds in training order.
        epochs: The config's ``epochs``.
        rank: The config's ``rank``.
        seed: The config's ``seed``.

    Returns:
        For instance ``4-heft-e3-r8-s0``.
    """
    return f"{number}-{method_name(stages)}-e{epochs}-r{rank}-s{seed}"


def config_dir() -> Path:
    """The folder of Hydra configs: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def register() -> None:
    """Put the schema into Hydra's ConfigStore and the resolvers that ``conf/`` uses into OmegaConf.

    ``${run_name:...}`` is :func:`run_name`. ``${tiny_or:ID,A,B}`` is A for the model that
    ships with the package and B for any other: a model with under a million parameters wants
    far larger learning rates than the published ones.
    """
    ConfigStore.instance().store(name="heft_schema", node=HeftConfig, provider="heft_pipeline")
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    OmegaConf.register_new_resolver(
        "tiny_or", lambda id, tiny, other: tiny if id == "builtin:tiny" else other, replace=True
    )


def parse_positions(positions: str) -> tuple[int, int]:
    """Read a ReFT position string, in pyreft's notation.

    Args:
        positions: ``fN``, ``lM`` or ``fN+lM``: the first N and the last M prompt tokens.

    Returns:
        (N, M).

    Raises:
        UserError: The string is of another form, or both counts are 0.
    """
    match = re.fullmatch(r"(?:f(\d+))?(?:(?<=\d)\+(?=l))?(?:l(\d+))?", positions.strip())
    if not match or not any(int(n or 0) for n in match.groups()):
        raise UserError(
            f"reft.positions={positions} is not a position string; write fN, lM or fN+lM for the "
            "first N and last M prompt tokens, e.g. reft.positions=f7+l7"
        )
    first, last = (int(n or 0) for n in match.groups())
    return first, last
