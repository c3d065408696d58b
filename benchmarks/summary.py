"""Turning measurements into rows and ratios."""

from dataclasses import dataclass, field

from benchmarks.piece import Measured

#: The comparisons, in the table's order.
PARTS = ("fine_f7l7", "fine_suffix", "coarse", "eval")
#: The part that needs all others: a sweep whose times are computed.
GRID = "grid"
#: ReFT's positions in each part.
POSITIONS = {"fine_f7l7": "f7+l7", "fine_suffix": "l7"}
#: The epochs of the sweep's runs.
GRID_EPOCHS = (3, 20)
_MOST_EPOCHS = 10_000


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
        ratio: The speed relative to the part's peer, in examples per second.
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
        training_rows: The number of training rows that the sweep's seconds are for.
        ratios: How many times as fast as the peers this project is; these end the output.
        others: More ratios.
        failed: What failed.
    """

    gflops: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, dict[str, float]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    loss_differences: dict[str, tuple[float, float, int]] = field(default_factory=dict)
    paid_off: dict[str, int | None] = field(default_factory=dict)
    same_predictions: tuple[float, float] | None = None
    grids: dict[str, list[GridRun]] = field(default_factory=dict)
    training_rows: int = 0
    ratios: dict[str, float | None] = field(default_factory=dict)
    others: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def summary(results: Results) -> Summary:
    """Compute rows and ratios.

    Args:
        results: The measurements; parts may be missing.

    Returns:
        The summary; a ratio is None if its pieces are missing.
    """
    found = Summary(training_rows=results.rows)
    measured = results.measured
    for name in ("peak_before", "peak_after"):
        if peak := measured.get(("machine", name)):
            found.peaks[name.removeprefix("peak_")] = peak.gflops
            for dtype, gflops in peak.gflops.items():
                found.gflops[dtype] = max(gflops, found.gflops.get(dtype, 0.0))
    for (part, name), piece in measured.items():
        if part != "machine":
            found.rows.append(_row(results, part, name, piece, found.gflops))
    for part, (theirs, ours) in results.losses.items():
        differences = [abs(a - b) for a, b in zip(theirs, ours, strict=True)]
        found.loss_differences[part] = (differences[0], max(differences), len(differences))
    for part in PARTS:
        found.ratios[f"{part}_ratio"] = _ratio(results, part, "own", "peer")
        same = _ratio(results, part, "own_same", "peer")
        if same is not None:
            found.others[f"{part}_ratio_{measured[part, 'peer'].dtype}"] = same
        off = measured.get((part, "own_no_reuse"))
        if off and (part, "own") in measured:
            found.paid_off[part] = paid_off(measured[part, "own"], off)
    if (short := _ratio(results, "eval", "own", "peer_short")) is not None:
        tokens = measured["eval", "peer_short"].new_tokens
        found.others[f"eval_ratio_at_{tokens}_new_tokens"] = short
    found.same_predictions = _agreement(results)
    for part, positions in POSITIONS.items():
        if grid := _grid(results, part):
            found.grids[positions] = grid
    for positions, grid in found.grids.items():
        ratio = sum(run.peers for run in grid) / sum(run.own for run in grid)
        if positions == POSITIONS["fine_f7l7"]:
            found.ratios["grid_ratio"] = ratio
        else:
            found.others[f"grid_ratio_{positions}"] = ratio
    found.ratios.setdefault("grid_ratio", None)
    found.failed = ["/".join(key) for key in results.failures]
    return found


def paid_off(reused: Measured, recomputed: Measured) -> int | None:
    """The first number of epochs for which training with reuse takes less time in total.

    Args:
        reused: The measurements with reuse; its first epoch may be slower.
        recomputed: The measurements without reuse.

    Returns:
        The epoch, from 1; None if there is none.
    """
    for epoch in range(1, _MOST_EPOCHS):
        if training_seconds(reused, epoch) < training_seconds(recomputed, epoch):
            return epoch
    return None


def training_seconds(piece: Measured, epochs: int) -> float:
    """The seconds of training for ``epochs`` epochs, with the one-off cost counted once."""
    return piece.one_off_seconds + epochs * piece.steady_seconds


def _row(results: Results, part: str, name: str, piece: Measured, gflops: dict[str, float]) -> Row:
    evaluation = part == "eval"
    peak = gflops.get(piece.dtype)
    peer = "fine_f7l7" if name == "fine_f7l7" else "fine_suffix" if part == GRID else part
    against = results.measured.get((peer, "peer"))
    return Row(
        part=part,
        who=_who(part, name, piece),
        dtype=piece.dtype,
        examples_per_second=piece.examples_per_second,
        tokens_per_second=piece.tokens_per_second,
        peak_memory_mb=piece.peak_memory_mb,
        peak_percent=piece.flop_per_second / peak / 1e7 if peak and piece.flop else None,
        one_off_seconds=None if evaluation else piece.one_off_seconds,
        ratio=piece.examples_per_second / against.examples_per_second if against else None,
    )


def _who(part: str, name: str, piece: Measured) -> str:
    if part == GRID:
        return f"own on LoRA, {POSITIONS[name]}"
    if name.startswith("peer"):
        if part == "eval":
            return f"pyreft generate {piece.new_tokens}"
        return "PEFT + Trainer" if part == "coarse" else "pyreft trainer"
    if part == "eval":
        return "own generate" if name == "own_generate" else "own score"
    return "own, reuse off" if name == "own_no_reuse" else "own stage"


def _ratio(results: Results, part: str, own: str, peer: str) -> float | None:
    ours, theirs = results.measured.get((part, own)), results.measured.get((part, peer))
    if ours is None or theirs is None:
        return None
    return ours.examples_per_second / theirs.examples_per_second


def _agreement(results: Results) -> tuple[float, float] | None:
    theirs = results.measured.get(("eval", "peer"))
    ours = results.measured.get(("eval", "own_generate"))
    if theirs is None or ours is None:
        return None
    count = len(ours.predictions)
    pairs = zip(theirs.predictions, ours.predictions, strict=True)
    same, any_choice = sum(a == b for a, b in pairs), sum(p >= 0 for p in ours.predictions)
    return same / count, any_choice / count


def _grid(results: Results, part: str) -> list[GridRun] | None:
    """Six runs. A peer trains each run by itself; here, HEFT reuses the trained LoRA stage."""
    keys = [(part, "peer"), (part, "own"), ("coarse", "peer"), ("coarse", "own"), (GRID, part)]
    if any(key not in results.measured for key in keys):
        return None
    pyreft, reft, peft, lora, reft_on_lora = (results.measured[key] for key in keys)
    runs = []
    for epochs in GRID_EPOCHS:
        coarse, fine = training_seconds(peft, epochs), training_seconds(pyreft, epochs)
        own_coarse, own_fine = training_seconds(lora, epochs), training_seconds(reft, epochs)
        own_second = training_seconds(reft_on_lora, epochs)
        runs += [
            GridRun(f"lora@{epochs}", coarse, own_coarse, f"lora@{epochs}"),
            GridRun(f"reft@{epochs}", fine, own_fine, f"reft@{epochs}"),
            GridRun(f"heft@{epochs}", coarse + fine, own_second, f"reft@{epochs} on lora@{epochs}"),
        ]
    return runs
