"""What was measured and what is printed of it."""

from dataclasses import dataclass, field

from benchmarks.piece import Measured

#: The comparisons, in the table's order.
PARTS = ("fine_f7l7", "fine_suffix", "coarse", "eval")
#: The part that needs all others: a sweep whose times are computed.
GRID = "grid"
#: ReFT's positions in each part.
POSITIONS = {"fine_f7l7": "f7+l7", "fine_suffix": "l7"}
#: The dtypes of the peers' base model.
DTYPES = ("float32", "bfloat16")


@dataclass
class Results:
    """Everything that was measured.

    Attributes:
        rows: The number of training rows asked for.
        epochs: The number of epochs of each timed training.
        measured: The measurements, by part and name.
        losses: The losses of each compared step, by part: (the peer's, this project's).
        failures: What went wrong, by part and name.
    """

    rows: int
    epochs: int
    measured: dict[tuple[str, str], Measured] = field(default_factory=dict)
    losses: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        part: The comparison.
        who: What was measured.
        dtype: The base model's dtype.
        examples_per_second: The speed after the first epoch.
        tokens_per_second: The speed in real tokens, after the first epoch.
        peak_memory_mb: The peak since the model was loaded.
        peak_percent: The percentage of the measured matrix-product peak in this dtype, over all
            epochs; None if operations are not counted.
        one_off_seconds: How much longer the first epoch took than later ones; None for evaluation.
        ratio: The speed relative to the part's faster peer, in examples per second.
    """

    part: str
    who: str
    dtype: str
    examples_per_second: float
    tokens_per_second: float
    peak_memory_mb: float
    peak_percent: float | None
    one_off_seconds: float | None
    ratio: float | None


@dataclass(frozen=True)
class GridRun:
    """One run of the computed sweep, in seconds."""

    name: str
    peers: float
    own: float
    trained: str


@dataclass
class Summary:
    """Everything that is printed.

    Attributes:
        gflops: The measured matrix-product peak, in GFLOP/s by dtype.
        peaks: The same, measured before and after the timed pieces; if they are far apart,
            something else was running.
        rows: The table.
        loss_differences: By part, the difference of the first step's losses, the largest difference
            of all steps, and the number of steps.
        paid_off: By part, the epoch after which reuse is faster in total; None if it never is.
        same_predictions: The share of examples for which pyreft's generation and this
            project's begin with the same choice (or none), and the share for which this project's
            begins with any choice.
        grids: The computed sweep for each choice of positions.
        paper_grids: The computed rows of the HEFT paper's table, by what the script pads to.
        training_rows: The number of training rows that the sweep's seconds are for.
        ratios: How many times as fast this project is as the peers, each in the dtype in which it
            is faster; these end the output.
        others: More ratios: to a peer ``against`` one dtype, or with both sides ``in`` one dtype.
        failed: What failed.
    """

    gflops: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, dict[str, float]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    loss_differences: dict[str, tuple[float, float, int]] = field(default_factory=dict)
    paid_off: dict[str, int | None] = field(default_factory=dict)
    same_predictions: tuple[float, float] | None = None
    grids: dict[str, list[GridRun]] = field(default_factory=dict)
    paper_grids: dict[str, list[GridRun]] = field(default_factory=dict)
    training_rows: int = 0
    ratios: dict[str, float | None] = field(default_factory=dict)
    others: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def training_seconds(piece: Measured, epochs: int, rows: int = 0) -> float:
    """The seconds of training for ``epochs`` epochs, with the one-off cost counted once.

    Args:
        piece: The measurement.
        epochs: The number of epochs.
        rows: The rows of an epoch; 0 for as many as were measured.
    """
    return piece.one_off_seconds + epochs * (rows or piece.examples) / piece.examples_per_second


def faster(results: Results, part: str, *names: str) -> Measured | None:
    """The fastest measurement of a peer over its dtypes; None if there is none.

    Args:
        results: The measurements.
        part: The part.
        names: The names without the dtype; by default only ``peer``.
    """
    known = (
        results.measured.get((part, f"{name}_{dtype}"))
        for name in names or ("peer",)
        for dtype in DTYPES
    )
    return max(filter(None, known), key=lambda peer: peer.examples_per_second, default=None)


def ratio(ours: Measured | None, theirs: Measured | None) -> float | None:
    """How many times as many examples per second; None if a measurement is missing."""
    if ours is None or theirs is None:
        return None
    return ours.examples_per_second / theirs.examples_per_second
