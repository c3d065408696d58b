"""The rise of a loss between two models that read the same text."""

import math

import numpy as np
from scipy.stats import t

from heft_pipeline.evidence.resampling import Estimate, Floats
from heft_pipeline.evidence.two_way_variance import two_way


def mean_over_windows(values: Floats) -> Estimate:
    """The mean of values that were measured on windows of text, with its 95 % interval.

    With one seed it is Student's interval over windows. With several, both seeds and windows are
    treated as random samples, as for accuracy.

    Args:
        values: [seeds, windows], of the same windows; at least one seed and two windows. For a
            rise, the later model's loss less the earlier one's, window by window.

    Returns:
        The mean with its interval.
    """
    seeds, windows = values.shape
    if seeds == 1:
        mean, freedom = float(values.mean()), float(windows - 1)
        variance = float(values.var(ddof=1)) / windows
    elif np.ptp(values) == 0:
        return Estimate(float(values.flat[0]), float(values.flat[0]), float(values.flat[0]))
    else:
        table = two_way(values)
        mean, variance, freedom = table.mean, table.variance, table.freedom
    half = float(t.ppf(0.975, freedom)) * math.sqrt(variance)
    return Estimate(mean, mean - half, mean + half)
