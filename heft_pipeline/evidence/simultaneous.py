"""Intervals that hold for several comparisons at once, and the p-values that agree with them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from heft_pipeline.evidence.comparison import ALPHA, Comparison

_DRAWS, _DRAWS_AT_ONCE = 2**17, 2**13


@dataclass(frozen=True)
class Simultaneous:
    """The largest of several tests' statistics, under no differences at all.

    Attributes:
        alpha: The level at which each interval is to be computed, for all of them to cover at
            once with a probability of 95 %.
        maxima: Draws of the largest statistic, ascending; empty for a single test.
        tests: The number of tests.
    """

    alpha: float
    maxima: NDArray[np.float64]
    tests: int

    def adjusted(self, p_value: float) -> float:
        """A test's p-value, adjusted for all tests; below 0.05 exactly where it is below ``alpha``.

        Args:
            p_value: The test's own.

        Returns:
            The probability that the largest statistic is at least as extreme.
        """
        if self.tests < 2:
            return p_value
        count = len(self.maxima)
        above = count - int(np.searchsorted(self.maxima, norm.isf(p_value / 2)))
        return max(p_value, min(1.0, self.tests * p_value, (above + 1) / count))


def simultaneous(groups: Sequence[Sequence[Comparison]], draws: int = _DRAWS) -> Simultaneous:
    """Find the level that makes intervals simultaneous: the single-step max-T procedure.

    Each statistic is brought to the normal scale by its own p-value, so that tests with different
    degrees of freedom can stand together (Westfall and Young 1993, min-P; Hothorn, Bretz and
    Westfall 2008). Their correlations are estimated from the seeds' and the examples' deviations,
    and shrunk towards independence, which is the safe side, by (n - 2) / n for n seeds or examples.

    Args:
        groups: The comparisons; those of a group are on the same examples.
        draws: How many times the largest statistic is drawn, in multiples of 8,192.

    Returns:
        The level, and the adjustment of p-values.
    """
    tests = sum(map(len, groups))
    if tests < 2:
        return Simultaneous(ALPHA, np.empty(0), tests)
    correlation = np.eye(tests)
    start = 0
    for group in groups:
        end = start + len(group)
        if group:
            correlation[start:end, start:end] = _correlation(group)
        start = end
    values, vectors = np.linalg.eigh(correlation)
    root = vectors * np.sqrt(values.clip(min=0))
    random = np.random.default_rng(0)
    maxima = np.concatenate(
        [
            abs(random.standard_normal((_DRAWS_AT_ONCE, tests)) @ root.T).max(axis=1)
            for _ in range(draws // _DRAWS_AT_ONCE)
        ]
    )
    maxima.sort()
    critical = maxima[len(maxima) - int(ALPHA * len(maxima))]
    # Draws may fall short of Bonferroni's level by chance; it holds whatever the correlations.
    return Simultaneous(max(ALPHA / tests, float(2 * norm.sf(critical))), maxima, tests)


def _correlation(group: Sequence[Comparison]) -> NDArray[np.float64]:
    """[tests, tests], the correlation of comparisons on the same examples."""
    seeds = sorted({seed for one in group for seed in one.seeds})
    examples = len(group[0].deviations.of_examples)
    of_seeds, of_examples = np.zeros((len(group), len(seeds))), np.zeros((len(group), examples))
    for row, one in enumerate(group):
        own, weight = one.deviations, one.deviations.weight
        of_seeds[row, np.searchsorted(seeds, one.seeds)] = _scaled(own.of_seeds, weight)
        of_examples[row] = _scaled(own.of_examples, 1 - weight)
    parts = [_shrunk(of_seeds), _shrunk(of_examples)]
    found = parts[0] + parts[1]
    np.fill_diagonal(found, 1.0)
    return found


def _scaled(deviations: NDArray[np.float64], weight: float) -> NDArray[np.float64]:
    length = float(np.linalg.norm(deviations))
    return deviations * (weight**0.5 / length) if length else np.zeros_like(deviations)


def _shrunk(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """[tests, tests], the products of rows, those of different rows shrunk."""
    count = rows.shape[1]
    products = rows @ rows.T
    shrunk = products * max(0.0, (count - 2) / count)
    np.fill_diagonal(shrunk, products.diagonal())
    return np.asarray(shrunk)
