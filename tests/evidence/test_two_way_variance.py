"""The two-way analysis against statsmodels, and its quantiles."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from heft_pipeline.evidence.two_way_variance import Quantiles, two_way
from tests.evidence.tables import differences


def test_the_variance_is_that_of_statsmodels_mean_squares() -> None:
    cells = differences(np.random.default_rng(3), 3, 12, seed_effect=1.5)
    long = pd.DataFrame(
        [
            {"seed": seed, "example": example, "y": cells[seed, example]}
            for seed in range(3)
            for example in range(12)
        ]
    )
    squares = anova_lm(ols("y ~ C(seed) + C(example)", long).fit())["mean_sq"]
    seeds, examples, rest = squares["C(seed)"], squares["C(example)"], squares["Residual"]
    found = two_way(cells)
    total = max(seeds + examples - rest, seeds, examples)
    assert found.variance == pytest.approx(total / 36)
    assert found.mean == pytest.approx(cells.mean())
    assert found.quantiles.weight == pytest.approx(seeds / total)
    assert (found.quantiles.seeds, found.quantiles.examples) == (2, 11)
    assert found.components.of_rest == pytest.approx(rest)
    assert found.components.of_seeds == pytest.approx(max(0, (seeds - rest) / 12))
    assert found.components.of_examples == pytest.approx(max(0, (examples - rest) / 3))


def test_the_components_add_up_to_the_variance_of_the_mean() -> None:
    found = two_way(differences(np.random.default_rng(0), 4, 200, seed_effect=0.5))
    assert sum(found.components.variances) == pytest.approx(found.variance)
    assert found.components.error == pytest.approx(math.sqrt(found.variance))
    assert found.components.quantiles.weight == pytest.approx(found.quantiles.weight)


def test_a_component_is_found_where_it_is_and_not_where_it_is_not() -> None:
    random = np.random.default_rng(0)
    of_seeds, of_examples = random.normal(0, 3, size=(300, 1)), random.normal(0, 2, size=(1, 300))
    found = two_way(of_seeds + of_examples + random.normal(0, 1, size=(300, 300))).components
    assert found.of_seeds == pytest.approx(9, rel=0.2)
    assert found.of_examples == pytest.approx(4, rel=0.2)
    assert found.of_rest == pytest.approx(1, rel=0.05)
    assert two_way(np.repeat(of_examples, 5, axis=0)).components.of_seeds == pytest.approx(0)


def test_quantiles_are_students_where_only_seeds_or_only_examples_vary() -> None:
    assert Quantiles(1.0, 3, 500).upper(0.025) == pytest.approx(t.isf(0.025, 3))
    assert Quantiles(0.0, 3, 500).upper(0.025) == pytest.approx(t.isf(0.025, 500))
    between = Quantiles(0.5, 3, 500).upper(0.025)
    assert t.isf(0.025, 500) < between < t.isf(0.025, 3)


@pytest.mark.parametrize("weight", [0.0, 0.01, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("tail", [0.4, 0.025, 1e-3, 1e-9])
def test_a_tail_is_the_inverse_of_a_quantile(weight: float, tail: float) -> None:
    quantiles = Quantiles(weight, 2, 300)
    assert quantiles.tail(quantiles.upper(tail)) == pytest.approx(tail)


@pytest.mark.parametrize(
    ("seeds", "alpha", "most"),
    [(2, 0.05, 1.45), (2, 0.005, 1.35), (3, 0.05, 1.2), (3, 0.005, 1.2), (8, 0.005, 1.2)],
)
def test_quantiles_are_not_exceeded_much_too_often_whatever_the_seeds_share(
    seeds: int, alpha: float, most: float
) -> None:
    """Mean squares of normal tables, from seeds that play no part to seeds that are all."""
    random, trials, examples, spread = np.random.default_rng(0), 40_000, 600, 4.0
    grid = np.linspace(0, 1, 101)
    by_weight = [Quantiles(w, seeds - 1, examples - 1).upper(alpha / 2) for w in grid]
    rest = random.chisquare((seeds - 1) * (examples - 1), trials) / (seeds - 1) / (examples - 1)
    of_examples = spread * random.chisquare(examples - 1, trials) / (examples - 1)
    for share in (0, 0.3, 0.6, 0.9, 0.95, 0.99):
        effect = spread * share / (1 - share)
        of_seeds = (1 + effect) * random.chisquare(seeds - 1, trials) / (seeds - 1)
        total = np.maximum.reduce([of_seeds + of_examples - rest, of_seeds, of_examples])
        mean = abs(random.normal(0, math.sqrt(effect + spread), trials))
        beyond = mean > np.interp(of_seeds / total, grid, by_weight) * np.sqrt(total)
        assert beyond.mean() < most * alpha
