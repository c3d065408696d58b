"""Intervals of accuracies, paired comparisons, and how many examples would decide one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm, t

Right = NDArray[np.bool_]
#: Significance level and power of all that is reported.
ALPHA, POWER = 0.05, 0.8
#: More examples or seeds than this are no advice.
_MOST = 1e9


@dataclass(frozen=True)
class Comparison:
    """How much more often the first of two methods is right than the second.

    Attributes:
        difference: The first's accuracy minus the second's, a share.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p_value: Two-sided, of no difference.
        wins: Examples that only the first answers rightly (a mean over seeds).
        losses: Examples that only the second answers rightly.
        seeds: Seeds on each side.
        examples: Evaluated examples.
        needed_examples: How many would show a difference of this size with 80 % power, the
            seeds as they are; None where no number would.
        needed_seeds: How many seeds would, the examples as they are; None where no number
            would, and with one seed, which says nothing of how seeds differ.
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


@dataclass(frozen=True)
class _TwoWay:
    """A table's mean with its standard error; seeds and examples both count as drawn at random.

    Attributes:
        mean: Of all cells.
        variance: Of that mean.
        freedom: Degrees of freedom of the variance.
        of_seeds: Variance between seeds.
        of_examples: Variance between examples.
        of_cells: What neither explains.
    """

    mean: float
    variance: float
    freedom: float
    of_seeds: float
    of_examples: float
    of_cells: float


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a proportion.

    Args:
        correct: Right answers.
        total: All answers, at least 1.
        confidence: The nominal coverage.

    Returns:
        (low, high), shares.
    """
    interval = binomtest(correct, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def seeds_interval(right: Right, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of a mean accuracy over seeds and examples.

    With one seed, Wilson's. With more, Wilson's form with the effective number of examples that
    the two-way random-effects variance of the mean amounts to, and Student's quantile for
    the normal one: few seeds make it wide, however many examples there are.

    Args:
        right: [seeds, examples], whether each answer was right; the same examples a row.
        confidence: The nominal coverage.

    Returns:
        (low, high), shares.
    """
    seeds, examples = right.shape
    if seeds == 1:
        return wilson_interval(int(right.sum()), examples, confidence)
    table = _two_way(right.astype(float))
    share = table.mean
    if table.variance == 0:  # all right or all wrong
        return wilson_interval(round(share * examples), examples, confidence)
    size = share * (1 - share) / table.variance
    quantile = float(t.ppf((1 + confidence) / 2, table.freedom))
    weight = quantile**2 / size
    centre = (share + weight / 2) / (1 + weight)
    half = quantile * math.sqrt(share * (1 - share) / size + weight / (4 * size)) / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)


def compare(first: Right, second: Right) -> Comparison:
    """Compare two methods on the same examples.

    With one seed: the exact McNemar test on the examples that exactly one of them answers
    rightly, and Bonett and Price's (2012) interval of the difference. With more: a two-way
    random-effects analysis of the differences per seed and example (Clark's 1973 quasi-F with
    Satterthwaite's degrees of freedom), so that what is concluded holds for other seeds and
    other examples.

    Args:
        first: [seeds, examples], whether the first's answers were right.
        second: The same of the second, seed by seed and example by example.

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
        return _one_seed(round(wins), round(losses), examples)
    table = _two_way(differences)
    # Where (almost) no pair differs the variance is no evidence of certainty: not below what
    # Bonett and Price's interval leaves then.
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
        p_values: One a hypothesis.

    Returns:
        Adjusted p-values in the same order: those below the level may be rejected together.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _one_seed(wins: int, losses: int, examples: int) -> Comparison:
    discordant = wins + losses
    p_value = float(binomtest(wins, discordant).pvalue) if discordant else 1.0
    first, second = (wins + 1) / (examples + 2), (losses + 1) / (examples + 2)
    centre = first - second
    half = norm.ppf(1 - ALPHA / 2) * math.sqrt(
        (first + second - (first - second) ** 2) / (examples + 2)
    )
    difference = (wins - losses) / examples
    needed = None
    if difference:
        share = discordant / examples  # Connor (1987)
        needed = math.ceil(
            (
                norm.ppf(1 - ALPHA / 2) * math.sqrt(share)
                + norm.ppf(POWER) * math.sqrt(max(0.0, share - difference**2))
            )
            ** 2
            / difference**2
        )
    return Comparison(
        difference=difference,
        low=max(-1.0, centre - half),
        high=min(1.0, centre + half),
        p_value=p_value,
        wins=wins,
        losses=losses,
        seeds=1,
        examples=examples,
        needed_examples=needed,
        needed_seeds=None,
    )


def _two_way(cells: NDArray[np.float64]) -> _TwoWay:
    """Analyse [seeds, examples] cells, at least 2 of each, as crossed random effects."""
    seeds, examples = cells.shape
    mean = cells.mean()
    by_seed, by_example = cells.mean(axis=1), cells.mean(axis=0)
    rest = cells - by_seed[:, None] - by_example[None, :] + mean
    of_seeds = examples * ((by_seed - mean) ** 2).sum() / (seeds - 1)
    of_examples = seeds * ((by_example - mean) ** 2).sum() / max(1, examples - 1)
    freedom_of_rest = max(1, (seeds - 1) * (examples - 1))
    of_rest = (rest**2).sum() / freedom_of_rest
    # The mean squares' expectations give its variance. An estimate below either of the first
    # two would mean a negative component.
    total = max(of_seeds + of_examples - of_rest, of_seeds, of_examples)
    spread = (
        of_seeds**2 / (seeds - 1)
        + of_examples**2 / max(1, examples - 1)
        + of_rest**2 / freedom_of_rest
    )
    return _TwoWay(
        mean=float(mean),
        variance=float(total / (seeds * examples)),
        # Satterthwaite's is below 1 where mean squares all but cancel out; a variance has 1.
        freedom=max(1.0, float(total**2 / spread)) if spread else float(seeds - 1),
        of_seeds=float(max(0.0, (of_seeds - of_rest) / examples)),
        of_examples=float(max(0.0, (of_examples - of_rest) / seeds)),
        of_cells=float(of_rest),
    )


def _needed_examples(table: _TwoWay, seeds: int) -> int | None:
    """How many examples would show the mean, the seeds as they are."""
    return _needed(table, table.freedom, table.of_examples, table.of_seeds, seeds)


def _needed_seeds(table: _TwoWay, examples: int) -> int | None:
    """How many seeds would show the mean; more seeds also tell better how much they differ."""
    found: int | None = None
    freedom = table.freedom
    for _ in range(20):  # it settles within a few rounds
        now = _needed(table, freedom, table.of_seeds, table.of_examples, examples)
        if now is None or now == found:
            return now
        found, freedom = now, max(table.freedom, now - 1)
    return found


def _needed(table: _TwoWay, freedom: float, own: float, other: float, others: int) -> int | None:
    """How many of one factor's levels would show the mean, given how many the other has."""
    if not table.mean:
        return None
    quantile = float(t.ppf(1 - ALPHA / 2, freedom) + t.ppf(POWER, freedom))
    left = (table.mean / quantile) ** 2 - other / others
    if left <= 0:
        return None
    needed = (own + table.of_cells / others) / left
    return max(2, math.ceil(needed)) if needed < _MOST else None
