"""How the report says what was found about a claim, in which way, and what would decide it."""

import math
from collections.abc import Sequence

from heft_pipeline.data.rows import RowClusters
from heft_pipeline.evidence.claims import Claim
from heft_pipeline.evidence.comparison import (
    BOTH,
    EXAMPLES,
    POWER,
    SEEDS,
    SIGN_FLIP_SEEDS,
    Comparison,
)
from heft_pipeline.report import words
from heft_pipeline.report.verdicts import ONE_RUN, Verdict

_MOST_EXAMPLES, _MORE_EXAMPLES = 10_000_000, 1000
_SPEAKS_OF = {
    BOTH: "other seeds and other examples",
    SEEDS: "other seeds on these examples",
    EXAMPLES: "other examples with these seeds",
}


def statement(verdict: Verdict) -> str:
    """A claim's verdict with its difference and interval, or with what is missing.

    Args:
        verdict: Any verdict.

    Returns:
        For instance ``contradicted (-8.28 points, -12.10 to -4.46)``, or ``this run: lower by
        10.90 points (-14.83 to -6.93); other seeds may differ``.
    """
    found = verdict.comparison
    if found is None:
        return f"{verdict.verdict} ({verdict.why})"
    metric = verdict.claim.metric
    low, high = (words.amount(end, metric) for end in verdict.interval)
    difference = f"{words.amount(found.difference, metric)} {words.unit(metric)}"
    if verdict.verdict != ONE_RUN:
        return f"{verdict.verdict} ({difference}, {low} to {high})"
    which = "this run" if len(found.seeds) == 1 else f"these {len(found.seeds)} runs"
    said = _of_these_runs(verdict.claim, verdict.holds, found.difference)
    shown = (
        f"{low} to {high}"
        if words.size(found.difference, metric) in said
        else (f"{difference}, {low} to {high}")
    )
    return f"{which}: {said} ({shown}); other seeds may differ"


def _of_these_runs(claim: Claim, holds: bool | None, difference: float) -> str:
    """What an interval says of a claim where nothing is known of other seeds."""
    if claim.relation == ">":
        if holds is None:
            return "no difference shown"
        return f"{'higher' if holds else 'lower'} by {words.size(difference, claim.metric)}"
    unit = words.unit(claim.metric)
    margin = f"{claim.margin_text} {unit[:-1] if claim.margin == 1 else unit}"
    if claim.relation == "=":
        known = {True: "less than {} apart", False: "more than {} apart"}
    else:
        known = {True: "not lower by {} or more", False: "lower by more than {}"}
    return known[holds].format(margin) if holds is not None else f"not decided at {margin}"


def effect(verdict: Verdict, claims: int) -> str:
    """What was measured, in one sentence.

    Args:
        verdict: The verdict on a claim that could be tested.
        claims: How many claims the report tests.

    Returns:
        For instance ``-1.20 points (95 % interval for all 4 claims at once: -3.90 to +1.50; p =
        0.39)``.
    """
    found, metric = verdict.comparison, verdict.claim.metric
    assert found is not None
    low, high = (words.amount(end, metric) for end in verdict.interval)
    at_once = f" for all {claims} claims at once" if claims > 1 else ""
    return (
        f"{words.amount(found.difference, metric)} {words.unit(metric)} (95 % interval{at_once}: "
        f"{low} to {high}; {words.p_value(verdict.adjusted)})"
    )


def explanation(verdict: Verdict, pointwise: bool = False) -> str:
    """How a verdict came about, and what would decide an open one, for people.

    Args:
        verdict: Any verdict.
        pointwise: Whether to say the interval that the claim would have as the only one.

    Returns:
        A few sentences.
    """
    found = verdict.comparison
    if found is None:
        return f"{verdict.why[:1].upper()}{verdict.why[1:]}."
    return " ".join(
        filter(
            None,
            [
                _what_was_compared(verdict, found),
                f"The interval's half width is {noise(verdict)}.",
                _alone(verdict) if pointwise else "",
                _test(verdict, found),
                _what_it_takes(verdict, found),
            ],
        )
    )


def noise(verdict: Verdict) -> str:
    """Where a comparison's uncertainty comes from, and what more seeds or examples would buy.

    Args:
        verdict: The verdict on a claim that could be tested.

    Returns:
        One line, e.g. ``±1.54 points: seeds 0 %, examples 20 %, rest 80 %; ...``.
    """
    found, metric = verdict.comparison, verdict.claim.metric
    assert found is not None
    parts = found.components.variances
    whole = sum(parts) or 1.0
    of_seeds, of_examples, of_rest = (f"{part / whole:.0%}".replace("%", " %") for part in parts)
    if found.components.of_seeds is None:
        sources = "from examples alone"
    else:
        sources = f"seeds {of_seeds}, examples {of_examples}, rest {of_rest}"
    now, *more = (
        (name, f"±{words.size(width, metric)}") for name, width in widths_with_more(verdict).items()
    )
    bought = [f"{width.split()[0]} with {name}" for name, width in more]
    return "; ".join(filter(None, [f"{now[1]}: {sources}", ", ".join(bought)]))


def would_decide(verdict: Verdict) -> str:
    """How many seeds, or how many examples, would decide a claim that is open.

    Args:
        verdict: The verdict on a claim that could be tested.

    Returns:
        A clause; empty where the claim is not open, or where no such number is known.
    """
    if verdict.holds is not None or not verdict.gap:
        return ""
    seeds, examples = verdict.needed
    named = [f"{words.rounded(seeds)} seeds"] if seeds is not None else []
    if examples is not None and examples <= _MOST_EXAMPLES:
        named.append(f"{words.rounded(examples)} examples")
    verb = "show a difference" if verdict.verdict == ONE_RUN else "decide"
    return f"about {' or '.join(named)} would {verb}" if named else ""


def widths_with_more(verdict: Verdict) -> dict[str, float]:
    """Half the interval's width, and what it is expected to be with more data.

    Args:
        verdict: The verdict on a claim that could be tested.

    Returns:
        Half widths, in the claim's unit as a share or in nats: ``now``, ``1 more seed`` where
        seeds matter and are known, ``1,000 more examples`` where examples matter.
    """
    found = verdict.comparison
    assert found is not None
    low, high = verdict.interval
    half, usual = (high - low) / 2, found.half_width(verdict.level)
    widths = {"now": half}
    if not usual or math.isinf(half):  # nothing is known to shrink
        return widths
    scale = half / usual
    if found.scope != EXAMPLES:
        widths["1 more seed"] = scale * found.half_width(verdict.level, seeds=1)
    if found.scope != SEEDS:
        more = scale * found.half_width(verdict.level, examples=_MORE_EXAMPLES)
        widths[f"{_MORE_EXAMPLES:,} more examples"] = more
    return widths


def how_they_were_made(
    verdicts: Sequence[Verdict], clustered: RowClusters | None, claims: int
) -> str:
    """What the intervals and verdicts of a section rest on and speak of.

    Args:
        verdicts: The section's verdicts.
        clustered: Which examples belong together; None where they are independent.
        claims: How many claims the report tests.

    Returns:
        Sentences; empty where no claim could be tested.
    """
    tested = [verdict.comparison for verdict in verdicts if verdict.comparison is not None]
    if not tested:
        return ""
    scopes = list(dict.fromkeys(found.scope for found in tested))
    at_once = f" for all {claims} claims at once (max-T)" if claims > 1 else ""
    sentences = [
        f"The intervals cover with 95 %{at_once} and speak of "
        f"{'; or of '.join(_SPEAKS_OF[scope] for scope in scopes)}."
    ]
    if any(verdict.verdict == ONE_RUN for verdict in verdicts):
        sentences.append("Of other seeds they say nothing.")
    if tested[0].tasks > 1:
        sentences.append(_over_tasks(tested[0]))
    if few := sorted({len(found.seeds) for found in tested if _rests_on_a_model(found)}):
        seeds = " or ".join(map(str, few))
        sentences.append(
            f"With {seeds} seeds they rest on a model: the seeds' effects are normally distributed "
            "and add to those of the examples."
        )
    if clustered is not None:
        count = tested[0].clusters or tested[0].examples
        sentences.append(
            f"The {tested[0].examples:,} examples count as {count:,} clusters, by "
            f"{clustered.column}."
        )
        if clustered.trained:
            sentences.append(
                f"{clustered.trained:,} of them share theirs with a training row, so that they may "
                "be easier than new examples."
            )
    return " ".join(sentences)


def _over_tasks(found: Comparison) -> str:
    clustered = (
        f" The {found.examples:,} examples count as {found.clusters:,} clusters, as is said with "
        "each task."
        if found.clusters is not None
        else ""
    )
    return (
        f"Differences are means over {found.tasks} tasks, which all count the same, however many "
        "examples they have. Examples are random samples within their task; the tasks are fixed, "
        "and nothing is said of others. More examples means proportionally more of each task."
        f"{clustered}"
    )


def _rests_on_a_model(found: Comparison) -> bool:
    return 1 < len(found.seeds) < SIGN_FLIP_SEEDS and found.scope != EXAMPLES


def _what_was_compared(verdict: Verdict, found: Comparison) -> str:
    seeds = "one seed" if len(found.seeds) == 1 else f"{len(found.seeds)} seeds"
    mean = "" if len(found.seeds) == 1 else " on average"
    right = "right" if verdict.claim.metric == "accuracy" else "the surer of the right answer"
    tasks = f" of {found.tasks} tasks" if found.tasks > 1 else ""
    said = (
        f"On {found.examples:,} examples{tasks} and {seeds}, only the first is {right} on "
        f"{found.wins:.0f}{mean}, and only the second on {found.losses:.0f}."
    )
    if all(budget > 0 for budget in verdict.budgets):  # NaN where it is not known
        one, two = map(words.number, verdict.budgets)
        said += f" Training took {one} against {two} TFLOP."
    return said


def _alone(verdict: Verdict) -> str:
    low, high = (words.amount(end, verdict.claim.metric) for end in verdict.pointwise)
    return f"As the only claim, its 95 % interval would be {low} to {high}."


def _test(verdict: Verdict, found: Comparison) -> str:
    if found.scope == EXAMPLES:
        independent = found.clusters is None and verdict.claim.metric == "accuracy"
        name = (
            "Tango's score interval"
            if independent and len(found.seeds) == 1 and found.tasks == 1
            else ("Student's interval over examples")
        )
    elif found.scope == SEEDS:
        name = "Student's interval over seeds"
    else:
        name = "two-way random effects of seeds and examples"
    if found.tasks > 1:
        name += ", of means over tasks" if found.scope == SEEDS else ", drawn within each task"
    flips = found.sign_flip(verdict.claim.boundaries)
    beside = (
        f" The sign-flip test over {len(found.seeds)} seeds, which assumes no distribution and "
        f"speaks of other seeds on these examples, gives {words.p_value(flips)} by itself."
        if flips is not None
        else ""
    )
    return f"Test: {name}.{beside}"


def _what_it_takes(verdict: Verdict, found: Comparison) -> str:
    if verdict.holds is not None:
        return ""
    if not verdict.gap:
        return "There is no difference to detect."
    chance = f"a difference of this size with {POWER:.0%} power"
    seeds, examples = verdict.needed
    if examples is not None and examples <= _MOST_EXAMPLES:
        with_seeds = "" if len(found.seeds) == 1 else f" with {len(found.seeds)} seeds"
        takes = f"about {words.rounded(examples)} examples{with_seeds}"
        if seeds is not None:
            takes += f", or about {words.rounded(seeds)} seeds on these examples"
        return f"Detecting {chance} takes {takes}."
    if seeds is not None:
        return (
            f"With {len(found.seeds)} seeds, no number of examples would be enough to detect "
            f"{chance}; about {words.rounded(seeds)} seeds would be enough on these examples."
        )
    if examples is not None:
        return f"Detecting {chance} takes more than {_MOST_EXAMPLES:,} examples."
    return f"Detecting {chance} takes both more seeds and more examples."
