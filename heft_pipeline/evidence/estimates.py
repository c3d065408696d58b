"""Estimates of a difference from which a p-value and an interval are both read.

An interval at ``alpha`` leaves out a value exactly where that value's p-value is below ``alpha``,
so the two can never disagree.
"""

import math
from dataclasses import dataclass
from typing import Protocol

from scipy.stats import norm

from heft_pipeline.evidence.two_way_variance import Quantiles


class Estimate(Protocol):
    """An estimated difference."""

    def interval(self, alpha: float) -> tuple[float, float]:
        """The interval (low, high) with a nominal coverage of 1 - ``alpha``."""
        ...

    def p_value(self, null: float) -> float:
        """The two-sided p-value of the difference being ``null``."""
        ...


@dataclass(frozen=True)
class StudentEstimate:
    """A mean with a standard error that is estimated, too.

    Attributes:
        mean: The mean.
        error: Its standard error, at least 0.
        quantiles: Those of the mean's deviation over its error.
        most: The largest magnitude that the mean can have.
    """

    mean: float
    error: float
    quantiles: Quantiles
    most: float = math.inf

    def interval(self, alpha: float) -> tuple[float, float]:
        """Student's interval, within what is possible."""
        half = self.quantiles.upper(alpha / 2) * self.error
        return max(-self.most, self.mean - half), min(self.most, self.mean + half)

    def p_value(self, null: float) -> float:
        """Student's test."""
        if not self.error:
            return float(self.mean == null)
        return 2 * self.quantiles.tail(abs(self.mean - null) / self.error)


@dataclass(frozen=True)
class ScoreEstimate:
    """The difference of two paired proportions, by Tango's score test.

    At 0 the test is McNemar's without continuity correction; the interval is the set of
    differences that it does not reject (Tango 1998, Statistics in Medicine 17, 891-908).

    Attributes:
        wins: How many examples only the first method answers correctly. An exact tie counts as
            what chance gives it, which makes the interval a little wider than it would have to be.
        losses: How many only the second does.
        examples: The number of examples.
    """

    wins: float
    losses: float
    examples: int

    def interval(self, alpha: float) -> tuple[float, float]:
        """Tango's score interval."""
        quantile = float(norm.isf(alpha / 2))
        found = (self.wins - self.losses) / self.examples
        # The statistic falls from plus to minus infinity as the tested difference rises.
        low = self._where(quantile, -1.0, found)
        high = self._where(-quantile, found, 1.0)
        return low, high

    def p_value(self, null: float) -> float:
        """The score test's."""
        return float(2 * norm.sf(abs(self._statistic(null))))

    def _where(self, value: float, low: float, high: float) -> float:
        """The difference between ``low`` and ``high`` at which the statistic has a value."""
        for _ in range(80):
            middle = (low + high) / 2
            if self._statistic(middle) > value:
                low = middle
            else:
                high = middle
        return (low + high) / 2

    def _statistic(self, null: float) -> float:
        count, wins, losses = self.examples, self.wins, self.losses
        linear = (2 * count - wins + losses) * null - wins - losses
        constant = -losses * null * (1 - null)
        root = math.sqrt(max(0.0, linear**2 - 8 * count * constant))
        share = (root - linear) / (4 * count)  # of losses, at its likeliest given the difference
        variance = count * (2 * share + null * (1 - null))
        distance = wins - losses - count * null
        if variance <= 1e-12 * count:
            return math.copysign(math.inf, distance) if abs(distance) > 1e-9 * count else 0.0
        return distance / math.sqrt(variance)
