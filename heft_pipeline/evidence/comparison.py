"""Paired comparisons of two methods, and what would decide one."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from heft_pipeline.evidence.clusters import Clusters
from heft_pipeline.evidence.estimates import Estimate, ScoreEstimate, StudentEstimate
from heft_pipeline.evidence.strata import (
    Strata,
    Stratum,
    example_deviations,
    overall_mean,
    seed_means,
    stratified,
    variance_of_examples,
)
from heft_pipeline.evidence.two_way_variance import Components, Quantiles, two_way_over_strata

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
        of_examples: [clusters], from the means of their tasks, and weighted so that each task
            counts the same; zeros where it does not speak of other examples.
        weight: The share of the seeds in the mean's variance.
    """

    of_seeds: NDArray[np.float64]
    of_examples: NDArray[np.float64]
    weight: float


@dataclass(frozen=True)
class Comparison:
    """The difference of two methods, the first minus the second.

    Attributes:
        difference: The mean difference: of accuracy as a share, of log-probability in nats. Of
            several tasks it is the unweighted mean over them.
        wins: How many examples the first answers better (a mean over seeds). An exact tie counts
            as what chance gives it.
        losses: How many examples the second answers better.
        seeds: The numbers of the seeds that both sides have.
        examples: The number of evaluated examples, of all tasks.
        clusters: The number of their clusters; None where examples are independent.
        tasks: The number of tasks.
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
    tasks: int
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
            examples: How many more examples there would be, in clusters of the same size, and
                proportionally more of each task.
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
            How many seeds on these examples, and how many examples with these seeds (of all tasks,
            each with its present share), would show it with 80 % power; None where no number
            would, where the spread is unknown, or where the comparison does not speak of others.
        """
        scoped = self._scoped
        seeds = examples = None
        if scoped.evenness * scoped.examples <= 1 and self.scope != SEEDS:  # a single cluster
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
    strata: Strata | None = None,
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

    Over several tasks, the difference is the unweighted mean over them, and examples are drawn
    within their task. One seed then gets Student's interval by accuracy, too.

    Args:
        differences: [seeds, examples], the first method minus the second.
        seeds: The seeds' numbers; None for 0, 1, ...
        clusters: The examples' clusters; None where they are independent.
        strata: The examples' tasks; None for one.
        scope: ``seeds``, ``examples`` or ``both``; with one seed always ``examples``.
        accuracy: Whether the differences are of right answers, and so between -1 and 1.

    Returns:
        The comparison.
    """
    tasks = stratified(differences, clusters, strata)
    count, examples = differences.shape
    scope = EXAMPLES if count == 1 else scope
    by_seed, mean = seed_means(tasks), overall_mean(tasks)
    least = [_least_variance(one, scope) if accuracy else 0.0 for one in tasks]
    variance, quantiles, components = _spread(tasks, scope, least)
    wins = float(differences.clip(min=0).sum() / count)
    losses = float(-differences.clip(max=0).sum() / count)
    estimate: Estimate = StudentEstimate(mean, math.sqrt(variance), quantiles)
    if count == 1 and accuracy and clusters is None and len(tasks) == 1:
        estimate = ScoreEstimate(wins, losses, examples)
    elif accuracy:
        floor = sum(least) / len(tasks) ** 2
        estimate = StudentEstimate(mean, math.sqrt(max(variance, floor)), quantiles, most=1.0)
    return Comparison(
        difference=mean,
        wins=wins if accuracy else float((differences > 0).sum() / count),
        losses=losses if accuracy else float((differences < 0).sum() / count),
        seeds=tuple(range(count) if seeds is None else seeds),
        examples=examples,
        clusters=None if clusters is None else components.examples,
        tasks=len(tasks),
        scope=scope,
        estimate=estimate,
        components=components,
        by_seed=by_seed,
        deviations=Deviations(by_seed - mean, example_deviations(tasks), quantiles.weight),
    )


def _spread(
    tasks: Sequence[Stratum], scope: str, least: Sequence[float]
) -> tuple[float, Quantiles, Components]:
    """The variance of the mean over tasks, its quantiles, and where it comes from."""
    by_seed, examples = seed_means(tasks), sum(one.count for one in tasks)
    seeds = len(by_seed)
    of_examples, freedom = variance_of_examples(tasks, least)
    if seeds > 1:
        table = two_way_over_strata(tasks, least)
        variance, quantiles, components = table.variance, table.quantiles, table.components
    elif len(tasks) == 1:
        own = _variance(tasks[0].cells.mean(axis=0))
        components = Components(None, own, 0.0, 1, examples, tasks[0].evenness)
    else:
        even = (freedom + 1) / examples
        components = Components(None, of_examples * examples, 0.0, 1, examples, even)
    if scope != BOTH:
        variance = _variance(by_seed) / seeds if scope == SEEDS else of_examples
        quantiles = Quantiles(float(scope == SEEDS), seeds - 1, freedom)
    # A task with one cluster does not show how its examples differ.
    if scope != SEEDS and min(one.count for one in tasks) == 1:
        variance = math.inf
    return variance, quantiles, components


def _least_variance(task: Stratum, scope: str) -> float:
    """What the variance of a task's mean of right answers is kept from falling below.

    Where (almost) no pair differs, a variance near 0 is no evidence of certainty. It is at least
    that of one pair won and one lost (Bonett and Price 2012); of clusters, that of one won and one
    lost as a whole, divided among those that do differ, which show how far they agree within.
    """
    differ = (task.values != 0).any(axis=0)
    count, found = len(differ), int(differ.sum())
    if task.clusters is not None and scope != SEEDS:
        count, found = task.count, len(np.unique(task.clusters[differ]))
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
