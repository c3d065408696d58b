"""Paired comparisons of two methods, and what would decide one."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from heft_pipeline.evidence.clusters import Clusters, by_cluster, evenness
from heft_pipeline.evidence.estimates import Estimate, ScoreEstimate, StudentEstimate
from heft_pipeline.evidence.two_way_variance import Components, Quantiles, two_way

#: The significance level and the power of everything that is reported.
ALPHA, POWER = 0.05, 0.8
#: What a comparison speaks of: other seeds, other examples, or both.
SEEDS, EXAMPLES, BOTH = "seeds", "examples", "both"
#: The fewest seeds with which a sign-flip test can reach the level: 2 / 2**6 is below it.
SIGN_FLIP_SEEDS = 6
#: To ask for more examples or seeds than this is no advice.
_MOST = 10**9
#: Up to so many seeds, all ways of flipping signs are tried; beyond, so many random ones.
_ALL_FLIPS, _RANDOM_FLIPS = 16, 2**16


@dataclass(frozen=True)
class Deviations:
    """How single seeds and examples deviate from a comparison's mean.

    Attributes:
        of_seeds: [seeds]; zeros where the comparison does not speak of other seeds.
        of_examples: [clusters]; zeros where it does not speak of other examples.
        weight: The share of the seeds in the mean's variance.
    """

    of_seeds: NDArray[np.float64]
    of_examples: NDArray[np.float64]
    weight: float


@dataclass(frozen=True)
class Comparison:
    """The difference of two methods, the first minus the second.

    Attributes:
        difference: The mean difference: of accuracy as a share, of log-probability in nats.
        wins: How many examples the first answers better (a mean over seeds). An exact tie counts
            as what chance gives it.
        losses: How many examples the second answers better.
        seeds: The numbers of the seeds that both sides have.
        examples: The number of evaluated examples.
        clusters: The number of their clusters; None where examples are independent.
        scope: What it speaks of: ``seeds``, ``examples`` or ``both``.
        estimate: The difference with its uncertainty.
        components: Where the uncertainty comes from.
        by_seed: [seeds], the mean difference of each seed.
        deviations: For the correlation with other comparisons.
    """

    difference: float
    wins: float
    losses: float
    seeds: tuple[int, ...]
    examples: int
    clusters: int | None
    scope: str
    estimate: Estimate
    components: Components
    by_seed: NDArray[np.float64]
    deviations: Deviations

    def p_value(self, nulls: Sequence[float] = (0.0,)) -> float:
        """The two-sided p-value of the difference being any of some values.

        Args:
            nulls: The values; of several, the likeliest counts, as in two one-sided tests.
        """
        return max(self.estimate.p_value(null) for null in nulls)

    def sign_flip(self, nulls: Sequence[float] = (0.0,)) -> float | None:
        """The two-sided p-value of the seeds' differences having random signs around a value.

        It assumes nothing but that seeds are exchangeable and their differences symmetric, and
        speaks of other seeds on these examples.

        Args:
            nulls: The values; of several, the likeliest counts.

        Returns:
            The p-value; None with fewer than 6 seeds, with which it cannot reach 0.05.
        """
        if len(self.seeds) < SIGN_FLIP_SEEDS:
            return None
        return max(_sign_flip(self.by_seed - null) for null in nulls)

    def half_width(self, alpha: float, *, seeds: int = 0, examples: int = 0) -> float:
        """Half the width that an interval is to be expected to have.

        Args:
            alpha: One minus the interval's nominal coverage.
            seeds: How many more seeds there would be.
            examples: How many more examples there would be, in clusters of the same size.
        """
        scoped = self._scoped
        more = examples / self.examples * scoped.examples
        return scoped.resized(
            seeds=scoped.seeds + seeds, examples=round(scoped.examples + more)
        ).half_width(alpha)

    def needed(self, gap: float, alpha: float) -> tuple[int | None, int | None]:
        """How much would show that the difference is not at a value.

        Args:
            gap: How far the difference is from the value.
            alpha: The level.

        Returns:
            How many seeds on these examples, and how many examples with these seeds, would show
            it with 80 % power; None where no number would, where the spread is unknown, or where
            the comparison does not speak of others.
        """
        scoped = self._scoped
        seeds = examples = None
        if scoped.examples < 2 and self.scope != SEEDS:
            return None, None
        if scoped.of_seeds is not None:
            seeds = _least(lambda n: scoped.resized(seeds=n), gap, alpha)
        if self.scope != SEEDS:
            examples = _least(lambda n: scoped.resized(examples=n), gap, alpha)
        if examples is not None:  # from clusters
            examples = math.ceil(examples * self.examples / scoped.examples)
        return seeds, examples if examples is None or examples < _MOST else None

    @property
    def _scoped(self) -> Components:
        """The components of the variance that the scope leaves."""
        found = self.components
        if found.of_seeds is None or self.scope == BOTH:
            return found
        if self.scope == EXAMPLES:
            own = found.of_examples + found.of_rest / found.seeds
            return Components(None, own, 0.0, found.seeds, found.examples, found.evenness)
        own = found.of_seeds + found.of_rest / found.examples
        return Components(own, 0.0, 0.0, found.seeds, found.examples)


def least_p_value(difference: int) -> float:
    """The smallest p-value that McNemar's exact test can give.

    It is reached where every example that one method alone answers correctly is the same method's.

    Args:
        difference: How many more examples one method answers correctly.

    Returns:
        The two-sided p-value.
    """
    return float(binomtest(difference, difference).pvalue) if difference else 1.0


def compare(
    differences: NDArray[np.float64],
    *,
    seeds: Sequence[int] | None = None,
    clusters: Clusters | None = None,
    scope: str = BOTH,
    accuracy: bool = True,
) -> Comparison:
    """Compare two methods by their paired differences.

    One seed speaks of other examples only: of independent ones by Tango's score interval, whose
    test is McNemar's; of clusters of examples, and of log-probabilities, by Student's interval
    with cluster-robust errors and one degree of freedom less than the clusters are worth. Several
    seeds get a two-way random-effects analysis of seeds and examples (or clusters), so that the
    conclusion extends to other seeds and other examples; or Student's interval over one of the
    two, with the other as it is.

    Args:
        differences: [seeds, examples], the first method minus the second.
        seeds: The seeds' numbers; None for 0, 1, ...
        clusters: The examples' clusters; None where they are independent.
        scope: ``seeds``, ``examples`` or ``both``; with one seed always ``examples``.
        accuracy: Whether the differences are of right answers, and so between -1 and 1.

    Returns:
        The comparison.
    """
    cells = by_cluster(differences, clusters)
    count = len(cells)
    scope = EXAMPLES if count == 1 else scope
    names = tuple(range(count)) if seeds is None else tuple(seeds)
    by_seed, by_example = cells.mean(axis=1), cells.mean(axis=0)
    mean = float(cells.mean())
    variance, quantiles, components = _spread(cells, scope, evenness(clusters))
    wins = float(differences.clip(min=0).sum() / count)
    losses = float(-differences.clip(max=0).sum() / count)
    estimate: Estimate = StudentEstimate(mean, math.sqrt(variance), quantiles)
    if count == 1 and accuracy and clusters is None:
        estimate = ScoreEstimate(wins, losses, len(by_example))
    elif accuracy:
        least = _least_variance(differences, None if scope == SEEDS else clusters)
        estimate = StudentEstimate(mean, math.sqrt(max(variance, least)), quantiles, most=1.0)
    return Comparison(
        difference=mean,
        wins=wins if accuracy else float((differences > 0).sum() / count),
        losses=losses if accuracy else float((differences < 0).sum() / count),
        seeds=names,
        examples=differences.shape[1],
        clusters=None if clusters is None else len(by_example),
        scope=scope,
        estimate=estimate,
        components=components,
        by_seed=by_seed,
        deviations=Deviations(by_seed - mean, by_example - mean, quantiles.weight),
    )


def _spread(
    cells: NDArray[np.float64], scope: str, even: float
) -> tuple[float, Quantiles, Components]:
    """The variance of the mean of cells, its quantiles, and where it comes from."""
    by_seed, by_example = cells.mean(axis=1), cells.mean(axis=0)
    seeds, examples = cells.shape
    if seeds > 1:
        table = two_way(cells, even)
        variance, quantiles, components = table.variance, table.quantiles, table.components
    else:
        components = Components(None, _variance(by_example), 0.0, 1, examples, even)
    if scope != BOTH:
        own = by_seed if scope == SEEDS else by_example
        variance = _variance(own) / len(own)
        quantiles = Quantiles(float(scope == SEEDS), seeds - 1, even * examples - 1)
    if scope != SEEDS and examples == 1:  # it does not show how examples differ
        variance = math.inf
    return variance, quantiles, components


def _least_variance(differences: NDArray[np.float64], clusters: Clusters | None) -> float:
    """What the variance of a mean of right answers is kept from falling below.

    Where (almost) no pair differs, a variance near 0 is no evidence of certainty. It is at least
    that of one pair won and one lost (Bonett and Price 2012); of clusters, that of one won and one
    lost as a whole, divided among those that do differ, which show how far they agree within.
    """
    differ = (differences != 0).any(axis=0)
    count, found = len(differ), int(differ.sum())
    if clusters is not None:
        count, found = int(clusters.max()) + 1, len(np.unique(clusters[differ]))
    return 2 / max(1, found) / (count + 2) ** 2


def _variance(values: NDArray[np.float64]) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0


def _sign_flip(differences: NDArray[np.float64]) -> float:
    count = len(differences)
    if count <= _ALL_FLIPS:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=count)))
        added = 0
    else:
        random = np.random.default_rng(0)
        signs = random.choice((-1.0, 1.0), size=(_RANDOM_FLIPS, count))
        added = 1  # the observed signs are one of the possible ways, too
    found = abs(differences.sum())
    as_large = (abs(signs @ differences) >= found - 1e-9 * max(1.0, found)).sum()
    return float((as_large + added) / (len(signs) + added))


def _least(of_size: Callable[[int], Components], gap: float, alpha: float) -> int | None:
    """The least number of seeds or examples with which a gap would be found."""

    def found(number: int) -> bool:
        components = of_size(number)
        quantiles = components.quantiles
        return gap >= (quantiles.upper(alpha / 2) + quantiles.upper(1 - POWER)) * components.error

    if gap <= 0 or not found(_MOST):
        return None
    low, high = 1, _MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if found(middle) else (middle, high)
    return high
