"""Paired comparisons of two methods: p-values, their correction, and what would decide one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest, norm, t

from heft_pipeline.evidence.two_way_variance import Right, TwoWay, two_way

#: The significance level and the power of everything that is reported.
ALPHA, POWER = 0.05, 0.8
#: To ask for more examples or seeds than this is no advice.
_MOST = 1e9


@dataclass(frozen=True)
class Comparison:
    """How much more often the first of two methods is right than the second.

    Attributes:
        difference: The first's accuracy minus the second's, as a share.
        low: The lower end of its 95 % interval.
        high: The upper end.
        p_value: The two-sided p-value of there being no difference.
        wins: How many examples only the first answers correctly (a mean over seeds).
        losses: How many examples only the second answers correctly.
        seeds: The number of seeds on each side.
        examples: The number of evaluated examples.
        needed_examples: How many examples would show a difference of this size with 80 % power,
            given these seeds; None where no number would.
        needed_seeds: How many seeds would show it, given these examples; None where no number
            would, and with one seed, from which the spread between seeds is unknown.
    """

    difference: float
    low: float
    high: float
    p_value: float
    wins: float
    losses: float
    seeds: int
    examples: int
    needed_examples: int | None
    needed_seeds: int | None


def compare(first: Right, second: Right) -> Comparison:
    """Compare two methods on the same examples.

    One seed gets the exact McNemar test on the examples that exactly one method answers
    correctly, and Bonett and Price's (2012) interval of the difference. Several seeds get a
    two-way random-effects analysis of the differences per seed and example (Clark's 1973 quasi-F
    with Satterthwaite's degrees of freedom), so that the conclusion extends to other seeds and
    other examples.

    Args:
        first: [seeds, examples], whether the first method's answers were right.
        second: The same for the second method, with the same seeds and examples.

    Returns:
        The comparison.

    Raises:
        ValueError: The shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"unpaired: {first.shape} against {second.shape}")
    seeds, examples = first.shape
    differences = first.astype(float) - second.astype(float)
    wins = float((differences > 0).sum() / seeds)
    losses = float((differences < 0).sum() / seeds)
    if seeds == 1:
        return _mcnemar(round(wins), round(losses), examples)
    table = two_way(differences)
    # Where (almost) no pair differs, a variance near 0 is no evidence of certainty; it is kept
    # from falling below what Bonett and Price's interval has in that case.
    variance = max(table.variance, 2 / (examples + 2) ** 2)
    quantile = float(t.ppf(1 - ALPHA / 2, table.freedom))
    error = math.sqrt(variance)
    return Comparison(
        difference=table.mean,
        low=max(-1.0, table.mean - quantile * error),
        high=min(1.0, table.mean + quantile * error),
        p_value=float(2 * t.sf(abs(table.mean) / error, table.freedom)),
        wins=wins,
        losses=losses,
        seeds=seeds,
        examples=examples,
        needed_examples=_needed_examples(table, seeds),
        needed_seeds=_needed_seeds(table, examples),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjustment for testing several hypotheses.

    Args:
        p_values: One for each hypothesis.

    Returns:
        The adjusted p-values in the same order; all hypotheses whose value is below the level
        can be rejected together.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _mcnemar(wins: int, losses: int, examples: int) -> Comparison:
    discordant = wins + losses
    p_value = float(binomtest(wins, discordant).pvalue) if discordant else 1.0
    first, second = (wins + 1) / (examples + 2), (losses + 1) / (examples + 2)
    centre = first - second
    half = norm.ppf(1 - ALPHA / 2) * math.sqrt(
        (first + second - (first - second) ** 2) / (examples + 2)
    )
    difference = (wins - losses) / examples
    return Comparison(
        difference=difference,
        low=max(-1.0, centre - half),
        high=min(1.0, centre + half),
        p_value=p_value,
        wins=wins,
        losses=losses,
        seeds=1,
        examples=examples,
        needed_examples=_connor(discordant / examples, difference),
        needed_seeds=None,
    )


def _connor(share: float, difference: float) -> int | None:
    """How many examples McNemar's test needs (Connor 1987), given the share of discordant ones."""
    if not difference:
        return None
    return math.ceil(
        (
            norm.ppf(1 - ALPHA / 2) * math.sqrt(share)
            + norm.ppf(POWER) * math.sqrt(max(0.0, share - difference**2))
        )
        ** 2
        / difference**2
    )


def _needed_examples(table: TwoWay, seeds: int) -> int | None:
    """How many examples would show the mean, given the seeds."""
    return _needed(table, table.freedom, table.of_examples, table.of_seeds, seeds)


def _needed_seeds(table: TwoWay, examples: int) -> int | None:
    """How many seeds would show the mean; more seeds also tell better how much they differ."""
    found: int | None = None
    freedom = table.freedom
    for _ in range(20):  # it settles within a few rounds
        now = _needed(table, freedom, table.of_seeds, table.of_examples, examples)
        if now is None or now == found:
            return now
        found, freedom = now, max(table.freedom, now - 1)
    return found


def _needed(table: TwoWay, freedom: float, own: float, other: float, others: int) -> int | None:
    """How many levels of one factor would show the mean, given how many the other has."""
    if not table.mean:
        return None
    quantile = float(t.ppf(1 - ALPHA / 2, freedom) + t.ppf(POWER, freedom))
    left = (table.mean / quantile) ** 2 - other / others
    if left <= 0:
        return None
    needed = (own + table.of_cells / others) / left
    return max(2, math.ceil(needed)) if needed < _MOST else None
