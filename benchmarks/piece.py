"""What a timed process is asked to do, and what it measures."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heft_pipeline.plan.graph import Run, make_run
from heft_pipeline.plan.sources import BUILTIN, Sources
from heft_pipeline.settings.checks import typed
from heft_pipeline.settings.schema import config_dir, register

#: The longest prompt in the HEFT paper's script, which also pads LoRA's rows to it.
PAPER_TOKENS = 2048
#: The positions of a small model that are left for answers, and the rows that a stage scores.
_LEFT_FOR_ANSWERS, _SCORED_ROWS = 8, 8


@dataclass(frozen=True)
class Piece:
    """One thing to do in a process of its own.

    Attributes:
        side: ``own`` or ``peer``.
        work: ``reft``, ``lora``, ``reft_on_lora``, ``score``, ``generate`` (see ``own.py`` and
            ``peers.py``), ``peak`` or ``random_model``.
        model: A model folder; for ``random_model``, where to save it.
        data: A folder with train, dev and validation files.
        workdir: A folder for temporary files.
        dtype: The base model's dtype: ``float32``, ``bfloat16``, or empty for what this project
            chooses.
        positions: ReFT's positions.
        epochs: The number of epochs, of which the first is warm-up.
        batch_size: Examples per step.
        seed: The seed of initial weights and orders.
        losses: Whether to record every step's loss, on batches in this project's own order.
        overrides: Further overrides of this project's config.
        max_new_tokens: The most tokens that a peer's ``generate`` decodes; 0 for the longest choice
            and the end token after it.
        shape: The shape of a ``random_model``.
        paper: Whether the settings are those of ``conf/experiment/heft_paper.yaml``, and a peer's
            rows and collators those of the script in the HEFT paper's appendix.
        accumulation: In how many parts a peer runs a batch.
        padded_to: The tokens that a peer's LoRA rows are padded to on the right, with ``paper``; 0
            for the longest row of a batch.
        processor_time: Whether processor time is measured instead of wall time.
    """

    side: str
    work: str
    model: str = ""
    data: str = ""
    workdir: str = ""
    dtype: str = "float32"
    positions: str = "f7+l7"
    epochs: int = 3
    batch_size: int = 8
    seed: int = 0
    losses: bool = False
    overrides: tuple[str, ...] = ()
    max_new_tokens: int = 0
    shape: str = ""
    paper: bool = False
    accumulation: int = 1
    padded_to: int = 0
    processor_time: bool = False

    @property
    def clock(self) -> Callable[[], float]:
        """A clock in seconds."""
        return time.process_time if self.processor_time else time.perf_counter


@dataclass(frozen=True)
class Asked:
    """A piece and its place in the table.

    Attributes:
        part: The comparison that it belongs to.
        name: ``peer_DTYPE``, ``own`` (in the dtype that this project chooses), or the name of a
            further piece.
        piece: What to run.
        unless_own: Skip the piece if ``own`` has already run in this dtype.
    """

    part: str
    name: str
    piece: Piece
    unless_own: str | None = None


@dataclass
class Measured:
    """What a process measured.

    Attributes:
        dtype: The base model's dtype.
        epoch_seconds: The time of each epoch's steps; for ``score`` and ``generate``, of the
            only pass.
        examples: Examples per epoch.
        tokens: Real (unpadded) input tokens per epoch.
        peak_memory_mb: The highest memory since the model was loaded.
        flop: The floating-point operations of all epochs together; 0 if they are not counted.
        losses: The loss of each step, if asked for.
        predictions: For ``score`` and ``generate``, the choice for each example; -1 for none.
        new_tokens: The most tokens that a peer's ``generate`` could decode.
        gflops: For ``peak``, GFLOP/s by dtype.
    """

    dtype: str = ""
    epoch_seconds: list[float] = field(default_factory=list)
    examples: int = 0
    tokens: int = 0
    peak_memory_mb: float = 0.0
    flop: float = 0.0
    losses: list[float] = field(default_factory=list)
    predictions: list[int] = field(default_factory=list)
    new_tokens: int = 0
    gflops: dict[str, float] = field(default_factory=dict)

    @property
    def steady_seconds(self) -> float:
        """Seconds per epoch, without the first epoch if there are several."""
        later = self.epoch_seconds[1:] or self.epoch_seconds
        return sum(later) / len(later)

    @property
    def one_off_seconds(self) -> float:
        """How much longer the first epoch took than the later ones; 0 if it was not slower."""
        return max(0.0, self.epoch_seconds[0] - self.steady_seconds)

    @property
    def examples_per_second(self) -> float:
        """Examples per second after the first epoch."""
        return self.examples / self.steady_seconds

    @property
    def tokens_per_second(self) -> float:
        """Real tokens per second after the first epoch."""
        return self.tokens / self.steady_seconds

    @property
    def flop_per_second(self) -> float:
        """Operations per second over all epochs."""
        return self.flop / sum(self.epoch_seconds)


def composed(piece: Piece) -> Run:
    """This project's run for a piece, composed from its config.

    The run's last stage is the one that the piece asks for.
    """
    from hydra import compose, initialize_config_dir

    method = {"lora": "lora", "reft_on_lora": "heft"}.get(piece.work, "reft")
    overrides = [
        "sweep=benchmark",
        f"method={method}",
        f"model.id='{piece.model}'",
        f"data.path='{piece.data}'",
        "data.name=benchmark",
        f"seed={piece.seed}",
        f"epochs={piece.epochs}",
        f"lora.batch_size={piece.batch_size}",
        f"reft.batch_size={piece.batch_size}",
        *(_of_paper(piece) if piece.paper else _of_project(piece)),
    ]
    if piece.dtype:
        overrides.append(f"model.dtype={piece.dtype}")
    if piece.work == "reft_on_lora":
        overrides.append("lora.epochs=1")
    if piece.losses:
        overrides.append("training.log_every_steps=1")
    register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("config", [*overrides, *piece.overrides])
    sources = Sources(Path(piece.workdir) / "digests.json")
    return make_run(typed(config), sources, "benchmark", overrides)


def _of_project(piece: Piece) -> list[str]:
    """Overrides for comparing with the peers at this project's own settings."""
    return [
        "data=boolq",
        "data.dev_split=dev",
        "rank=8",
        "lora.alpha=16",
        "lora.dropout=0",
        f"reft.positions={piece.positions}",
    ]


def _of_paper(piece: Piece) -> list[str]:
    """Overrides for the HEFT paper's settings on a smaller model.

    One layer is edited, the one that layer 15 of 32 is in the paper.
    """
    config = model_config(piece.model)
    longest = min(PAPER_TOKENS, config.max_position_embeddings - _LEFT_FOR_ANSWERS)
    return [
        "+experiment=heft_paper",
        "model=tiny",  # which leaves name and dtype to the model that is named
        "data.special_tokens=once",
        f"data.max_prompt_tokens={longest}",
        "data.truncate_column=passage",
        f"data.max_eval_rows={_SCORED_ROWS}",  # what is timed here is training
        f"reft.layers=[{config.num_hidden_layers // 2 - 1}]",
        *(["lora.dropout=0"] if piece.losses else []),
    ]


def model_config(model: str) -> Any:
    """The transformers config of a model's text part."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(BUILTIN.get(model, model)).get_text_config()
