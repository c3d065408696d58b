"""The interval of an accuracy, with one seed or several."""

import math

from scipy.stats import norm

from heft_pipeline.evidence.clusters import Clusters, by_cluster, evenness
from heft_pipeline.evidence.two_way_variance import Quantiles, Right, two_way


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
    right: Right, clusters: Clusters | None = None, confidence: float = 0.95
) -> tuple[float, float]:
    """The interval of a mean accuracy over seeds and examples.

    One seed gets Wilson's interval. Several seeds, and clusters of examples, get Wilson's formula
    with two replacements: the effective number of examples that the variance of the mean amounts
    to, and a quantile that knows how few seeds or clusters there are. The variance is that of a
    two-way random-effects analysis, or with one seed the clusters'. Few seeds make it wide,
    however many examples there are.

    Args:
        right: [seeds, examples], how right each answer was; every row has the same examples.
        clusters: The examples' clusters; None where they are independent.
        confidence: The nominal coverage.

    Returns:
        The ends (low, high) as shares.
    """
    seeds, examples = right.shape
    share = float(right.mean())
    if seeds == 1 and clusters is None:
        return wilson_interval(float(right.sum()), examples, confidence)
    cells = by_cluster(right.astype(float), clusters)
    even = evenness(clusters)
    count = cells.shape[1]
    if seeds == 1:
        variance = float(cells.var(ddof=1)) / count if count > 1 else 0.0
        quantiles = Quantiles(0.0, 1, even * count - 1)
    else:
        table = two_way(cells, even)
        variance, quantiles = table.variance, table.quantiles
    if not variance or share in (0, 1):  # all right or all wrong
        return wilson_interval(share * even * count, even * count, confidence)
    size = share * (1 - share) / variance
    return _wilson(share, size, quantiles.upper((1 - confidence) / 2))


def _wilson(share: float, size: float, quantile: float) -> tuple[float, float]:
    """The interval of a share among ``size`` examples."""
    weight = quantile**2 / size
    centre = (share + weight / 2) / (1 + weight)
    half = quantile * math.sqrt(share * (1 - share) / size + weight / (4 * size)) / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)
