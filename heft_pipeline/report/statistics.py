"""Intervals of accuracies."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

_RESAMPLES = 2000


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


def seeds_interval(
    correct: NDArray[np.bool_], confidence: float = 0.95, resamples: int = _RESAMPLES
) -> tuple[float, float]:
    """The interval of a mean accuracy over seeds and examples.

    With one seed, Wilson's. With more, the percentile bootstrap that resamples seeds and
    examples, both with replacement (the crossed or "pigeonhole" bootstrap, Owen 2007).

    Args:
        correct: [seeds, examples], whether each answer was right; the same examples a row.
        confidence: The nominal coverage.
        resamples: Bootstrap resamples; they are drawn from a fixed seed.

    Returns:
        (low, high), shares.
    """
    seeds, examples = correct.shape
    if seeds == 1:
        return wilson_interval(int(correct.sum()), examples, confidence)
    random = np.random.default_rng(0)
    # Resampling counts instead of rows: the mean is a product with two weight vectors.
    by_seed = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    by_example = random.multinomial(examples, np.full(examples, 1 / examples), size=resamples)
    means = np.einsum("rs,se,re->r", by_seed, correct.astype(float), by_example / examples)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
