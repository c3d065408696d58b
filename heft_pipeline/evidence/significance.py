"""Paired comparisons of two methods: p-values, their correction, and what would decide one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm, t

from heft_pipeline.evidence.two_way_variance import Right, TwoWay, two_way

#: The significance level and the power of everything that is reported.
ALPHA, POWER = 0.05, 0.8
#: To ask for more examples or seeds than this is no advice.
_MOST = 1e9
#: The most choices that can be tied, for reading shares such as 1/3 back as fractions.
_MOST_CHOICES = 1000


@dataclass(frozen=True)
class Comparison:
    """How much more often the first of two methods is right than the second.

    Attributes:
        difference: The first's accuracy minus the second's, as a share.
        low: The lower end of its 95 % interval.
        high: The upper end.
        p_value: The two-sided p-value of there being no difference.
        wins: How many examples only the first answers correctly (a mean over seeds). An exact tie
            counts as what chance gives it.
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


def least_p_value(difference: int) -> float:
    """The smallest p-value that McNemar's exact test can give.

    It is reached where every example that one method alone answers correctly is the same method's.

    Args:
        difference: How many more examples one method answers correctly.

    Returns:
        The two-sided p-value.
    """
    return float(binomtest(difference, difference).pvalue) if difference else 1.0


def compare(first: Right, second: Right) -> Comparison:
    """Compare two methods on the same examples.

    One seed gets the exact McNemar test on the examples that exactly one method answers
    correctly, and Bonett and Price's (2012) interval of the difference. Where exact ties make some
    differences fractions, McNemar's test is the sign-flip test of which it is a special case.
    Several seeds get a two-way random-effects analysis of the differences per seed and example
    (Clark's 1973 quasi-F with Satterthwaite's degrees of freedom), so that the conclusion extends
    to other seeds and other examples.

    Args:
        first: [seeds, examples], how right the first method's answers were.
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
    if seeds == 1:
        return _mcnemar(differences[0])
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
        wins=float(differences.clip(min=0).sum() / seeds),
        losses=float(-differences.clip(max=0).sum() / seeds),
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


def _mcnemar(differences: NDArray[np.float64]) -> Comparison:
    examples = len(differences)
    wins, losses = float(differences.clip(min=0).sum()), float(-differences.clip(max=0).sum())
    squares = float((differences**2).sum())  # the number of discordant pairs, without ties
    centre = (wins - losses) / (examples + 2)
    spread = (squares + 2) / (examples + 2) - centre**2
    half = norm.ppf(1 - ALPHA / 2) * math.sqrt(spread / (examples + 2))
    difference = float(differences.mean())
    return Comparison(
        difference=difference,
        low=max(-1.0, centre - half),
        high=min(1.0, centre + half),
        p_value=_sign_flip(differences),
        wins=wins,
        losses=losses,
        seeds=1,
        examples=examples,
        needed_examples=_connor(squares / examples, difference),
        needed_seeds=None,
    )


def _sign_flip(differences: NDArray[np.float64]) -> float:
    """The exact two-sided p-value of a sum of differences whose signs are random.

    Without ties every difference is 1 or -1, and this is McNemar's exact test.
    """
    sizes = [Fraction(float(size)).limit_denominator(_MOST_CHOICES) for size in differences]
    sizes = [size for size in sizes if size]
    if all(abs(size) == 1 for size in sizes):
        wins = sum(size > 0 for size in sizes)
        return float(binomtest(wins, len(sizes)).pvalue) if sizes else 1.0
    unit = math.lcm(*(size.denominator for size in sizes))
    steps = [int(size * unit) for size in sizes]
    chance = np.ones(1)  # of each sum so far, from the lowest to the highest
    for step in map(abs, steps):
        wider = np.zeros(len(chance) + 2 * step)
        wider[: len(chance)] += chance / 2
        wider[2 * step :] += chance / 2
        chance = wider
    sums = np.arange(len(chance)) - len(chance) // 2
    return min(1.0, float(chance[abs(sums) >= abs(sum(steps))].sum()))


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
