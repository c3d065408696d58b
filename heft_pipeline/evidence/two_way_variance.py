"""The two-way random-effects analysis of a table of seeds and examples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from heft_pipeline.evidence.strata import Stratum, seed_means, variance_of_examples

#: [seeds, examples]: 1 or true for each right answer, 0 for each wrong one, 1/n where n choices
#: were exactly equal and the right one was among them. Every row has the same examples.
Right = NDArray[np.bool_] | NDArray[np.float64]


#: The tail beside an interval of 95 %.
_TAIL = 0.025


@dataclass(frozen=True)
class Components:
    """The variance components of a table whose cells are crossed seeds and examples.

    Attributes:
        of_seeds: The variance between seeds; None with one seed, which does not show it.
        of_examples: The variance between examples, or between clusters of them. With one seed,
            what seed and example make together is in it.
        of_rest: The variance that neither explains; 0 with one seed.
        seeds: The number of seeds.
        examples: The number of examples or clusters, of all tasks.
        evenness: What clusters of different sizes, or tasks of different sizes and spreads, are
            worth, as a share of their number.

    Over several tasks, the components are those that one task with as many examples would have
    for its mean to be as uncertain; another number of examples then means proportionally more of
    each task.
    """

    of_seeds: float | None
    of_examples: float
    of_rest: float
    seeds: int
    examples: int
    evenness: float = 1.0

    @property
    def variances(self) -> tuple[float, float, float]:
        """What seeds, examples and the rest contribute to the variance of the mean."""
        own = self.of_seeds or 0.0
        return (
            own / self.seeds,
            self.of_examples / self.examples,
            self.of_rest / (self.seeds * self.examples),
        )

    def resized(self, *, seeds: int | None = None, examples: int | None = None) -> "Components":
        """The same components with another number of seeds or examples."""
        return replace(self, seeds=seeds or self.seeds, examples=examples or self.examples)

    @property
    def error(self) -> float:
        """The standard error of the mean that is to be expected."""
        return math.sqrt(sum(self.variances))

    @property
    def quantiles(self) -> "Quantiles":
        """The quantiles that are to be expected for that error."""
        if self.of_seeds is None:
            return Quantiles(0.0, 1, self.evenness * self.examples - 1)
        seeds = self.examples * self.of_seeds + self.of_rest
        whole = seeds + self.seeds * self.of_examples
        freedom = self.evenness * self.examples - 1
        return Quantiles(seeds / whole if whole else 0.0, self.seeds - 1, freedom)

    def half_width(self, alpha: float) -> float:
        """Half the width that an interval is to be expected to have.

        Args:
            alpha: One minus the interval's nominal coverage.
        """
        return self.error * self.quantiles.upper(alpha / 2)


@dataclass(frozen=True)
class Quantiles:
    """The quantiles of a mean over its error, where that has a seeds' and an examples' part.

    The error's square is a sum of two variances with different degrees of freedom. Its quantile
    lies between Student's two, as in Cochran's (1951) approximation; here their squares are
    weighted, the seeds' by a power of their share. Satterthwaite's single number of degrees of
    freedom is too bold where seeds are few and differ much: by chance few seeds look alike, and
    just then he counts many degrees of freedom. With a power of 1 the quantile is never exceeded
    too often, but too seldom where seeds hardly differ; a power of 2 is a little bold in the worst
    case (7 % instead of 5 % with two seeds), and the bolder the smaller the tail (1.8 % instead of
    0.5 %). So it is 2 for an interval of 95 %, and falls to 1 with the tail.

    Attributes:
        weight: The seeds' mean square as a share of the whole, from 0 (seeds play no part) to 1.
        seeds: The degrees of freedom of the seeds' part.
        examples: Those of the examples' part.
    """

    weight: float
    seeds: int
    examples: float

    def upper(self, tail: float) -> float:
        """The value that is exceeded with a probability of ``tail``, at most a half."""
        part = self.weight ** (1 + min(1.0, tail / _TAIL))
        squares = [
            share * _student(tail, max(1, freedom)) ** 2 if share else 0.0
            for share, freedom in ((part, self.seeds), (1 - part, self.examples))
        ]
        return math.sqrt(sum(squares))

    def tail(self, value: float) -> float:
        """The probability of a value above ``value``, which is not negative."""
        if self.weight in (0.0, 1.0):
            return float(t.sf(value, max(1, self.seeds if self.weight else self.examples)))
        if math.isinf(value):
            return 0.0
        low, high = -200.0, 0.0  # logarithms of twice the tail
        for _ in range(60):
            middle = (low + high) / 2
            above = self.upper(math.exp(middle) / 2) > value
            low, high = (middle, high) if above else (low, middle)
        return math.exp(high) / 2


@lru_cache(maxsize=1024)
def _student(tail: float, freedom: float) -> float:
    return float(t.isf(tail, freedom))


@dataclass(frozen=True)
class TwoWay:
    """The mean of a table and how uncertain it is, where seeds and examples are both samples.

    Attributes:
        mean: The mean of all cells.
        variance: The variance of that mean.
        quantiles: The quantiles of the mean over that variance's root.
        components: Where the variance comes from.
    """

    mean: float
    variance: float
    quantiles: Quantiles
    components: Components


def two_way(cells: NDArray[np.float64], evenness: float = 1.0) -> TwoWay:
    """Analyse a table as crossed random effects (Clark 1973).

    Args:
        cells: [seeds, examples], at least 2 seeds.
        evenness: What clusters of different sizes are worth, as a share of their number.

    Returns:
        The mean with its variance and the variance's components.
    """
    seeds, examples = cells.shape
    mean = cells.mean()
    by_seed, by_example = cells.mean(axis=1), cells.mean(axis=0)
    of_seeds = float(examples * ((by_seed - mean) ** 2).sum() / (seeds - 1))
    of_examples = float(seeds * ((by_example - mean) ** 2).sum() / max(1, examples - 1))
    of_rest = _residual(cells)
    # It follows from the expected mean squares. An estimate below either of the first two would
    # imply a negative variance component.
    total = max(of_seeds + of_examples - of_rest, of_seeds, of_examples)
    weight = of_seeds / total if total else 0.0
    return TwoWay(
        mean=float(mean),
        variance=total / (seeds * examples),
        quantiles=Quantiles(weight, seeds - 1, evenness * examples - 1),
        components=Components(
            of_seeds=max(0.0, (of_seeds - of_rest) / examples),
            of_examples=max(0.0, (of_examples - of_rest) / seeds),
            of_rest=of_rest,
            seeds=seeds,
            examples=examples,
            evenness=evenness,
        ),
    )


def two_way_over_strata(strata: Sequence[Stratum], least: Sequence[float] | None = None) -> TwoWay:
    """Analyse the tables of several tasks, for the mean over tasks of their means.

    A seed's effects on the tasks may go together, as those of a lucky seed do, so the seeds'
    part is the variance of each seed's own mean over the tasks. Examples are drawn within their
    task, and the rest is what is left of each task's own table.

    Args:
        strata: The tasks, with at least 2 seeds.
        least: What the variance of each task's mean over examples is kept from falling below;
            without effect on a single task.

    Returns:
        The mean with its variance and the variance's components; of a single task, what
        :func:`two_way` returns.
    """
    if len(strata) == 1:
        return two_way(strata[0].cells, strata[0].evenness)
    means, examples = seed_means(strata), sum(one.count for one in strata)
    seeds = len(means)
    of_seeds = float(means.var(ddof=1)) / seeds
    of_examples, freedom = variance_of_examples(strata, least)
    of_rest = sum(_residual(one.cells) / one.cells.size for one in strata) / len(strata) ** 2
    total = max(of_seeds + of_examples - of_rest, of_seeds, of_examples)
    even = (freedom + 1) / examples
    return TwoWay(
        mean=float(means.mean()),
        variance=total,
        quantiles=Quantiles(of_seeds / total if total else 0.0, seeds - 1, even * examples - 1),
        components=Components(
            of_seeds=max(0.0, of_seeds - of_rest) * seeds,
            of_examples=max(0.0, of_examples - of_rest) * examples,
            of_rest=of_rest * seeds * examples,
            seeds=seeds,
            examples=examples,
            evenness=even,
        ),
    )


def _residual(cells: NDArray[np.float64]) -> float:
    """The mean square of what neither the seed nor the example explains."""
    seeds, examples = cells.shape
    by_seed, by_example = cells.mean(axis=1), cells.mean(axis=0)
    rest = cells - by_seed[:, None] - by_example[None, :] + cells.mean()
    return float((rest**2).sum() / max(1, (seeds - 1) * (examples - 1)))
