"""The interval of an accuracy, with one seed or several."""

import math

from scipy.stats import norm, t

from heft_pipeline.evidence.two_way_variance import Right, two_way


def wilson_interval(correct: float, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a proportion.

    Args:
        correct: The number of right answers; an exact tie adds what chance gives it.
        total: The number of answers, at least 1.
        confidence: The nominal coverage.

    Returns:
        The ends (low, high) as shares.
    """
    return _wilson(correct / total, total, float(norm.ppf((1 + confidence) / 2)))


def seeds_interval(right: Right, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of a mean accuracy over seeds and examples.

    One seed gets Wilson's interval. Several get Wilson's formula with two replacements: the
    effective number of examples that the two-way random-effects variance of the mean amounts to,
    and Student's quantile instead of the normal one. Few seeds make it wide, however many
    examples there are.

    Args:
        right: [seeds, examples], how right each answer was; every row has the same examples.
        confidence: The nominal coverage.

    Returns:
        The ends (low, high) as shares.
    """
    seeds, examples = right.shape
    if seeds == 1:
        return wilson_interval(float(right.sum()), examples, confidence)
    table = two_way(right.astype(float))
    share = table.mean
    if table.variance == 0:  # all right or all wrong
        return wilson_interval(share * examples, examples, confidence)
    size = share * (1 - share) / table.variance
    return _wilson(share, size, float(t.ppf((1 + confidence) / 2, table.freedom)))


def _wilson(share: float, size: float, quantile: float) -> tuple[float, float]:
    """The interval of a share among ``size`` examples."""
    weight = quantile**2 / size
    centre = (share + weight / 2) / (1 + weight)
    half = quantile * math.sqrt(share * (1 - share) / size + weight / (4 * size)) / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)
