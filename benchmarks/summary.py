"""Turning measurements into rows and ratios."""

from benchmarks import paper
from benchmarks.piece import Measured
from benchmarks.results import (
    DTYPES,
    GRID,
    PARTS,
    POSITIONS,
    GridRun,
    Results,
    Row,
    Summary,
    faster,
    training_seconds,
)
from benchmarks.results import ratio as ratio_of

#: The epochs of the sweep's runs.
GRID_EPOCHS = (3, 20)
_MOST_EPOCHS = 10_000


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
        own, peer = measured.get((part, "own")), faster(results, part)
        found.ratios[f"{part}_ratio"] = ratio_of(own, peer)
        for dtype in DTYPES:
            peer, same = (measured.get((part, f"{side}_{dtype}")) for side in ("peer", "own"))
            ratios = {"against": ratio_of(own, peer), "in": ratio_of(same, peer)}
            found.others |= {f"{part}_ratio_{how}_{dtype}": r for how, r in ratios.items() if r}
        off = measured.get((part, "own_no_reuse"))
        if off and (part, "own") in measured:
            found.paid_off[part] = paid_off(measured[part, "own"], off)
    short = faster(results, "eval", "short")
    if short and (ratio := ratio_of(measured.get(("eval", "own")), short)):
        found.others[f"eval_ratio_at_{short.new_tokens}_new_tokens"] = ratio
    found.same_predictions = _agreement(results)
    _add_grids(found, results)
    paper.add_paper(found, results)
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


def _row(results: Results, part: str, name: str, piece: Measured, gflops: dict[str, float]) -> Row:
    evaluation = part == "eval"
    peak = gflops.get(piece.dtype)
    if part.startswith("paper"):
        against = paper.best_peer(results, part)
    else:
        against = faster(results, name if part == GRID else part)
    return Row(
        part=part,
        who=paper.who(part, name) if part.startswith("paper") else _who(part, name, piece),
        dtype=piece.dtype,
        examples_per_second=piece.examples_per_second,
        tokens_per_second=piece.tokens_per_second,
        peak_memory_mb=piece.peak_memory_mb,
        peak_percent=piece.flop_per_second / peak / 1e7 if peak and piece.flop else None,
        one_off_seconds=None if evaluation else piece.one_off_seconds,
        ratio=ratio_of(piece, against),
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
        get((one, f"peer_{dtype}")) if dtype else faster(results, one) for one in (part, "coarse")
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
