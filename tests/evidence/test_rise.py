"""The interval of a rise over windows of text."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from heft_pipeline.evidence.rise import mean_over_windows


def test_one_seeds_interval_is_students_over_windows() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, (1, 20))
    found = mean_over_windows(values)
    expected = ttest_1samp(values[0], 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_no_rise_anywhere_is_zero_without_doubt() -> None:
    for seeds in (1, 3):
        found = mean_over_windows(np.zeros((seeds, 8)))
        assert (found.value, found.low, found.high) == (0, 0, 0)


def test_seeds_that_differ_widen_the_interval() -> None:
    windows = np.random.default_rng(1).normal(0, 0.01, 30)
    same = mean_over_windows(np.stack([windows, windows + 1e-6]))
    apart = mean_over_windows(np.stack([windows, windows + 0.2]))
    assert apart.high - apart.low > 5 * (same.high - same.low)
