"""The interval of an accuracy, with one seed or several."""

import math
from statistics import harmonic_mean

import numpy as np
from scipy.stats import norm

from heft_pipeline.evidence.clusters import Clusters
from heft_pipeline.evidence.strata import Strata, Stratum, stratified, variance_of_examples
from heft_pipeline.evidence.two_way_variance import Quantiles, Right, two_way_over_strata


def wilson_interval(correct: float, total: float, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a proportion.

    Args:
        correct: The number of right answers; an exact tie adds what chance gives it.
        total: The number of answers, at least 1; of clusters, the number that they are worth.
        confidence: The nominal coverage.

    Returns:
        The ends (low, high) as shares.
    """
    return _wilson(correct / total, total, float(norm.ppf((1 + confidence) / 2)))


def accuracy_interval(
    right: Right,
    clusters: Clusters | None = None,
    confidence: float = 0.95,
    strata: Strata | None = None,
) -> tuple[float, float]:
    """The interval of a mean accuracy over seeds and examples.

    One seed gets Wilson's interval. Several seeds, clusters of examples, and several tasks, get
    Wilson's formula with two replacements: the effective number of examples that the variance of
    the mean amounts to, and a quantile that knows how few seeds or clusters there are. The
    variance is that of a two-way random-effects analysis, or with one seed that of clusters or
    tasks. Few seeds make it wide, however many examples there are. Of several tasks, it is of the
    unweighted mean over them.

    Args:
        right: [seeds, examples], how right each answer was; every row has the same examples.
        clusters: The examples' clusters; None where they are independent.
        confidence: The nominal coverage.
        strata: The examples' tasks; None for one.

    Returns:
        The ends (low, high) as shares.
    """
    seeds, examples = right.shape
    tasks = stratified(right.astype(float), clusters, strata)
    if len(tasks) == 1 and seeds == 1 and clusters is None:
        return wilson_interval(float(right.sum()), examples, confidence)
    least = [_least_variance(task) for task in tasks]
    share = float(np.mean([task.values.mean() for task in tasks]))
    if seeds == 1:
        variance, freedom = variance_of_examples(tasks, least)
        quantiles = Quantiles(0.0, 1, freedom)
    else:
        table = two_way_over_strata(tasks, least)
        variance, quantiles = table.variance, table.quantiles
    if not variance or share in (0, 1):  # all right or all wrong
        worth = len(tasks) * harmonic_mean([task.evenness * task.count for task in tasks])
        return wilson_interval(share * worth, worth, confidence)
    size = share * (1 - share) / variance
    return _wilson(share, size, quantiles.upper((1 - confidence) / 2))


def _least_variance(task: Stratum) -> float:
    """What the variance of a task's accuracy is kept from falling below, of several tasks.

    A task without a wrong answer, or without a right one, may have either among other examples. It
    is at least as uncertain as with one more of both (Agresti and Caffo 2000); of clusters, with
    one that is all right and one that is all wrong, divided among those that have the rarer answer.
    """
    answers = [(task.values < 1).any(axis=0), (task.values > 0).any(axis=0)]
    if task.clusters is None:
        found = min(int(one.sum()) for one in answers)
    else:
        found = min(len(np.unique(task.clusters[one])) for one in answers)
    return 1 / max(1, found) / (task.evenness * task.count + 2) ** 2


def _wilson(share: float, size: float, quantile: float) -> tuple[float, float]:
    """The interval of a share among ``size`` examples."""
    weight = quantile**2 / size
    centre = (share + weight / 2) / (1 + weight)
    half = quantile * math.sqrt(share * (1 - share) / size + weight / (4 * size)) / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)
