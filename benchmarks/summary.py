"""Turning measurements into rows and ratios."""

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
        own, peer = measured.get((part, "own")), _faster(results, part)
        found.ratios[f"{part}_ratio"] = _ratio(own, peer)
        for dtype in DTYPES:
            peer, same = (measured.get((part, f"{side}_{dtype}")) for side in ("peer", "own"))
            ratios = {"against": _ratio(own, peer), "in": _ratio(same, peer)}
            found.others |= {f"{part}_ratio_{how}_{dtype}": r for how, r in ratios.items() if r}
        off = measured.get((part, "own_no_reuse"))
        if off and (part, "own") in measured:
            found.paid_off[part] = paid_off(measured[part, "own"], off)
    short = _faster(results, "eval", "short")
    if short and (ratio := _ratio(measured.get(("eval", "own")), short)):
        found.others[f"eval_ratio_at_{short.new_tokens}_new_tokens"] = ratio
    found.same_predictions = _agreement(results)
    _add_grids(found, results)
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
    against = _faster(results, name if part == GRID else part)
    return Row(
        part=part,
        who=_who(part, name, piece),
        dtype=piece.dtype,
        examples_per_second=piece.examples_per_second,
        tokens_per_second=piece.tokens_per_second,
        peak_memory_mb=piece.peak_memory_mb,
        peak_percent=piece.flop_per_second / peak / 1e7 if peak and piece.flop else None,
        one_off_seconds=None if evaluation else piece.one_off_seconds,
        ratio=_ratio(piece, against),
    )


def _who(part: str, name: str, piece: Measured) -> str:
    if part == GRID:
        return f"own on LoRA, {POSITIONS[name]}"
    if name.startswith(("peer", "short")):
        if part == "eval":
            return f"pyreft generate {piece.new_tokens}"
        return "PEFT + Trainer" if part == "coarse" else "pyreft trainer"
    if part == "eval":
        return "own generate" if name == "own_generate" else "own score"
    return "own, reuse off" if name == "own_no_reuse" else "own stage"


def _faster(results: Results, part: str, name: str = "peer") -> Measured | None:
    """The measurement of a peer in the dtype in which it is faster; None if there is none."""
    known = (results.measured.get((part, f"{name}_{dtype}")) for dtype in DTYPES)
    return max(filter(None, known), key=lambda peer: peer.examples_per_second, default=None)


def _ratio(ours: Measured | None, theirs: Measured | None) -> float | None:
    if ours is None or theirs is None:
        return None
    return ours.examples_per_second / theirs.examples_per_second


def _agreement(results: Results) -> tuple[float, float] | None:
    ours = results.measured.get(("eval", "own_generate"))
    theirs = results.measured.get(("eval", f"peer_{ours.dtype}")) if ours else None
    if theirs is None or ours is None:
        return None
    count = len(ours.predictions)
    pairs = zip(theirs.predictions, ours.predictions, strict=True)
    same, any_choice = sum(a == b for a, b in pairs), sum(p >= 0 for p in ours.predictions)
    return same / count, any_choice / count


def _add_grids(found: Summary, results: Results) -> None:
    found.ratios["grid_ratio"] = None
    for part, positions in POSITIONS.items():
        for dtype in ("", *DTYPES):
            grid = _grid(results, part, dtype)
            if not grid:
                continue
            ratio = sum(run.peers for run in grid) / sum(run.own for run in grid)
            name = "grid_ratio" + ("" if part == "fine_f7l7" else f"_{positions}")
            if dtype:
                found.others[f"{name}_against_{dtype}"] = ratio
                continue
            found.grids[positions] = grid
            (found.ratios if part == "fine_f7l7" else found.others)[name] = ratio


def _grid(results: Results, part: str, dtype: str) -> list[GridRun] | None:
    """Six runs. A peer trains each run by itself; here, HEFT reuses the trained LoRA stage.

    Args:
        results: The measurements.
        part: The part with the positions of ReFT.
        dtype: The peers' dtype; empty for the one in which each of them is faster.
    """
    get = results.measured.get
    pyreft, peft = (
        get((one, f"peer_{dtype}")) if dtype else _faster(results, one) for one in (part, "coarse")
    )
    reft, lora, reft_on_lora = get((part, "own")), get(("coarse", "own")), get((GRID, part))
    if not (pyreft and peft and reft and lora and reft_on_lora):
        return None
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
