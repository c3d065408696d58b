"""Intervals against statsmodels' formula and by simulation."""

import math

import numpy as np
import pytest

from heft_pipeline.report.statistics import seeds_interval, wilson_interval


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (7, 10), (85, 100), (2785, 3270)])
def test_wilson_equals_its_formula(correct: int, total: int) -> None:
    z, p = 1.959963984540054, correct / total
    centre = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    assert wilson_interval(correct, total) == pytest.approx((centre - half, centre + half))


def test_one_seed_gives_wilsons_interval() -> None:
    right = np.arange(50)[None] < 40
    assert seeds_interval(right) == wilson_interval(40, 50)


def test_the_interval_over_seeds_covers_the_truth_at_about_its_level() -> None:
    """Seeds and examples both vary; the truth is the mean over all of both."""
    random = np.random.default_rng(1)
    covered, trials = 0, 200
    for _ in range(trials):
        seed_effect = random.normal(0, 0.25, size=(6, 1))
        example_effect = random.normal(0, 1.0, size=(1, 300))
        chance = 1 / (1 + np.exp(-(0.8 + seed_effect + example_effect)))
        low, high = seeds_interval(random.random(chance.shape) < chance, resamples=400)
        wide = np.random.default_rng(2)
        effects = wide.normal(0, math.hypot(0.25, 1.0), size=200_000)
        truth = float(np.mean(1 / (1 + np.exp(-(0.8 + effects)))))
        covered += low <= truth <= high
    assert 0.90 <= covered / trials <= 1.0
