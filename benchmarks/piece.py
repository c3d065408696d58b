"""What one timed process is asked for and what it answers."""

from dataclasses import dataclass, field
from pathlib import Path

from heft_pipeline.plan.graph import Run, make_run
from heft_pipeline.plan.sources import Sources
from heft_pipeline.settings.checks import typed
from heft_pipeline.settings.schema import config_dir, register


@dataclass(frozen=True)
class Piece:
    """One thing to do in a process of its own.

    Attributes:
        side: ``own`` or ``peer``.
        work: ``reft``, ``lora``, ``reft_on_lora``, ``score``, ``generate`` (all of them also
            in ``own.py`` or ``peers.py``), ``peak`` or ``random_model``.
        model: A model folder; for ``random_model`` where to save it.
        data: A folder with train, dev and validation files.
        workdir: A folder for what is written on the way.
        dtype: Of the base model: ``float32``, ``bfloat16``, or ``auto`` for the project's choice.
        positions: ReFT's positions.
        epochs: Epochs, the first of which is warm-up.
        batch_size: Examples a step.
        seed: Of initial weights and orders.
        losses: Record every step's loss, on the batches that the project's own order gives.
        overrides: More of the project's config.
        max_new_tokens: What a peer's ``generate`` decodes at most; 0 for the longest choice and
            the end token after it.
        shape: What ``random_model`` makes.
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


@dataclass
class Measured:
    """What a process found.

    Attributes:
        dtype: Of the base model.
        epoch_seconds: Wall time of each epoch's steps; of ``score`` and ``generate`` one pass.
        examples: Examples an epoch.
        tokens: Real (unpadded) input tokens an epoch.
        peak_memory_mb: The highest memory since the model was loaded.
        flop: Floating-point operations of all epochs together; 0 where not counted.
        losses: Of each step, where asked for.
        predictions: Of ``score`` and ``generate``: a choice each, -1 for none.
        new_tokens: What a peer's ``generate`` decoded at most.
        gflops: Of ``peak``: GFLOP/s by dtype.
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
        """Seconds an epoch, without the first where there are more."""
        later = self.epoch_seconds[1:] or self.epoch_seconds
        return sum(later) / len(later)

    @property
    def one_off_seconds(self) -> float:
        """What the first epoch took longer than the later ones; 0 where it did not."""
        return max(0.0, self.epoch_seconds[0] - self.steady_seconds)

    @property
    def examples_per_second(self) -> float:
        """Examples a second after the first epoch."""
        return self.examples / self.steady_seconds

    @property
    def tokens_per_second(self) -> float:
        """Real tokens a second after the first epoch."""
        return self.tokens / self.steady_seconds

    @property
    def flop_per_second(self) -> float:
        """Operations a second over all epochs."""
        return self.flop / sum(self.epoch_seconds)


def composed(piece: Piece) -> Run:
    """The project's run for a piece, through its own config.

    Args:
        piece: The piece.

    Returns:
        The run; its last stage is the one that is asked for.
    """
    from hydra import compose, initialize_config_dir

    method = {"lora": "lora", "reft_on_lora": "heft"}.get(piece.work, "reft")
    overrides = [
        "sweep=benchmark",
        f"method={method}",
        f"model.id='{piece.model}'",
        f"model.dtype={piece.dtype}",
        "data=boolq",
        f"data.path='{piece.data}'",
        "data.name=benchmark",
        "data.dev_split=dev",
        f"seed={piece.seed}",
        f"epochs={piece.epochs}",
        "rank=8",
        "lora.alpha=16",
        "lora.dropout=0",
        f"lora.batch_size={piece.batch_size}",
        f"reft.batch_size={piece.batch_size}",
        f"reft.positions={piece.positions}",
    ]
    if piece.work == "reft_on_lora":
        overrides.append("lora.epochs=1")
    if piece.losses:
        overrides.append("training.log_every_steps=1")
    register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("config", [*overrides, *piece.overrides])
    sources = Sources(Path(piece.workdir) / "digests.json")
    return make_run(typed(config), sources, "benchmark", overrides)
