"""Tango's interval against published examples, and Student's at its limits."""

import math

import numpy as np
import pytest
from scipy.stats import t

from heft_pipeline.evidence.estimates import ScoreEstimate, StudentEstimate
from heft_pipeline.evidence.two_way_variance import Quantiles


@pytest.mark.parametrize(
    ("wins", "losses", "examples", "alpha", "published", "digits"),
    [
        # Airway hyper-responsiveness before and after stem-cell transplantation (Bentur et al.
        # 2009), as worked by Fagerland, Lydersen and Laake 2014, Statistics in Medicine 33.
        (1, 7, 21, 0.05, (-0.517, -0.026), 3),
        # Complete response before and after consolidation therapy (Cavo et al. 2012), as worked by
        # the R package contingencytables of Fagerland, Lydersen and Laake.
        (6, 16, 161, 0.05, (-0.1240, -0.0054), 4),
        # scoreci.mp(25, 28, 618, 0.90) of the R package PropCIs, whose difference is the second
        # count minus the first.
        (28, 25, 618, 0.10, (-0.0148, 0.0247), 4),
    ],
)
def test_tangos_interval_is_the_published_one(
    wins: int,
    losses: int,
    examples: int,
    alpha: float,
    published: tuple[float, float],
    digits: int,
) -> None:
    low, high = ScoreEstimate(wins, losses, examples).interval(alpha)
    assert (round(low, digits), round(high, digits)) == published


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (3, 0), (0, 3), (10, 0), (5, 5), (0.5, 0.25)])
def test_tangos_interval_holds_what_its_test_does_not_reject(wins: float, losses: float) -> None:
    estimate = ScoreEstimate(wins, losses, 10)
    low, high = estimate.interval(0.05)
    assert -1 <= low <= (wins - losses) / 10 <= high <= 1
    for end in (low, high):
        if -1 < end < 1 and end:
            assert estimate.p_value(end) == pytest.approx(0.05, abs=1e-6)
    for null in np.linspace(-0.99, 0.99, 199):
        assert (low <= null <= high) == (estimate.p_value(float(null)) >= 0.05)


def test_a_difference_of_which_nothing_is_known_is_anywhere_and_rejects_nothing() -> None:
    nothing = StudentEstimate(0.3, math.inf, Quantiles(0.0, 1, 0), 1.0)
    assert nothing.interval(0.05) == (-1, 1)
    assert nothing.p_value(0.0) == 1
    assert StudentEstimate(0.3, math.inf, Quantiles(0.0, 1, 0)).interval(0.05)[1] == math.inf


def test_an_interval_ends_where_what_is_possible_ends() -> None:
    wide = StudentEstimate(0.5, 0.4, Quantiles(0.0, 1, 9), 1.0)
    assert wide.interval(0.05) == (pytest.approx(0.5 - t.isf(0.025, 9) * 0.4), 1.0)
