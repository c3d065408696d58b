"""The bootstrap: how much a statistic would differ on other examples of the same kind."""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Enough for intervals whose ends are shown with two digits. Of very many examples, fewer samples
#: are drawn, so that all of them together have no more than so many counts.
REPEATS, _FEWEST, _MOST_COUNTS = 1000, 200, 30_000_000
_SEED = 0

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Measurement:
    """A statistic with its 95 % interval.

    Attributes:
        value: The statistic.
        low: The interval's lower end; NaN where there is no interval.
        high: Its upper end; NaN where there is no interval.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Resamples:
    """Bootstrap samples of examples, and of seeds where there are several.

    Attributes:
        of_groups: [R, G], how often each of G groups of examples is in each of R samples.
        of_seeds: [R, S], the same of seeds; each row adds up to S.
    """

    of_groups: Floats
    of_seeds: Floats


def group_numbers(examples: int, clusters: Integers | None) -> Integers:
    """The group that each example is resampled with.

    Args:
        examples: N, the number of examples.
        clusters: [N], equal for examples that belong together (questions on the same passage,
            say); None where each example stands for itself.

    Returns:
        [N] numbers from 0 to G - 1.

    Raises:
        ValueError: There is not exactly one cluster for each example.
    """
    if clusters is None:
        return np.arange(examples)
    if clusters.shape != (examples,):
        raise ValueError(f"{examples} examples need as many clusters, not {clusters.shape}")
    return np.unique(clusters, return_inverse=True)[1].astype(np.int64)


@functools.lru_cache(maxsize=2)
def resamples(groups: int, seeds: int) -> Resamples:
    """Draw bootstrap samples, always the same ones for the same numbers.

    Seeds and examples are drawn independently of each other, with replacement (the pigeonhole
    bootstrap of Owen 2007, Annals of Applied Statistics 1(2), 386-411). With one seed, only
    examples are drawn.

    Args:
        groups: G, the number of groups of examples.
        seeds: S, the number of seeds.

    Returns:
        :data:`REPEATS` samples, or fewer of more than 30,000 groups.
    """
    random = np.random.default_rng(_SEED)
    repeats = min(REPEATS, max(_FEWEST, _MOST_COUNTS // groups))
    drawn = random.multinomial(groups, np.full(groups, 1 / groups), size=repeats)
    of_seeds = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=repeats)
    return Resamples(drawn.astype(np.float64), of_seeds.astype(np.float64))


def summed(values: Floats, groups: Integers) -> Floats:
    """Add up examples' values within their groups.

    Args:
        values: [N, ...].
        groups: [N], from :func:`group_numbers`.

    Returns:
        [G, ...].
    """
    total = np.zeros((int(groups.max()) + 1, *values.shape[1:]))
    if len(total) == len(groups):  # each example is a group of its own
        total[groups] = values
    else:
        np.add.at(total, groups, values)
    return total


def basic_interval(value: float, resampled: Floats, least: float, most: float) -> Measurement:
    """The basic bootstrap interval of 95 % (Davison and Hinkley 1997, section 5.2.1).

    It mirrors the resampled statistics at the statistic, and so takes off the bias that a
    statistic of absolute values has. It is cut to the possible values, and always holds the
    statistic itself.

    Args:
        value: The statistic of the data.
        resampled: [R], the statistic of each sample; those that are NaN do not count.
        least: The smallest possible value.
        most: The largest possible value.

    Returns:
        The statistic with its interval.
    """
    known = resampled[~np.isnan(resampled)]
    if not len(known):
        return Measurement(value, float("nan"), float("nan"))
    below, above = np.quantile(known, [0.025, 0.975])
    low, high = max(least, 2 * value - above), min(most, 2 * value - below)
    return Measurement(value, min(value, float(low)), max(value, float(high)))
