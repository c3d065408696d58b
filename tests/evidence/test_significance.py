"""Statistics against scipy, statsmodels and simulation."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from heft_pipeline.evidence.intervals import seeds_interval, wilson_interval
from heft_pipeline.evidence.significance import compare, holm
from heft_pipeline.evidence.two_way_variance import Right


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (7, 10), (85, 100), (2785, 3270)])
def test_wilson_equals_statsmodels(correct: int, total: int) -> None:
    expected = proportion_confint(correct, total, method="wilson")
    assert wilson_interval(correct, total) == pytest.approx(expected)


def test_one_seed_gives_wilsons_interval() -> None:
    right = np.arange(50)[None] < 40
    assert seeds_interval(right) == wilson_interval(40, 50)


def test_equal_seeds_give_about_wilsons_interval() -> None:
    """Seeds that all answer alike add no knowledge and no doubt."""
    right = np.repeat(np.arange(400)[None] < 300, 4, axis=0)
    assert seeds_interval(right) == pytest.approx(wilson_interval(300, 400), abs=1e-3)


def test_the_paired_test_of_one_seed_is_mcnemars_exact_one() -> None:
    random = np.random.default_rng(0)
    first, second = random.random((2, 1, 200)) < [[[0.7]], [[0.6]]]
    table = pd.crosstab(first[0], second[0]).to_numpy()
    found = compare(first, second)
    assert found.p_value == pytest.approx(mcnemar(table, exact=True).pvalue)
    assert (found.wins, found.losses) == (table[1, 0], table[0, 1])
    assert found.difference == pytest.approx(first.mean() - second.mean())
    assert found.low < found.difference < found.high


def test_exact_ties_are_tested_as_random_signs() -> None:
    """With halves and thirds among the differences, every way of signing them is enumerated."""
    first = np.array([[1, 1, 0.5, 1, 1 / 3, 0, 1, 0.5, 1, 1]])
    second = np.array([[0, 0.5, 0, 0, 0, 1, 1, 0.5, 0.5, 0]])
    differences = first[0] - second[0]
    signs = np.array(list(itertools.product([-1, 1], repeat=len(differences))))
    sums = signs @ np.abs(differences)
    expected = np.mean(np.abs(sums) >= abs(differences.sum()) - 1e-9)
    found = compare(first, second)
    assert found.p_value == pytest.approx(expected)
    assert found.difference == pytest.approx(differences.mean())
    assert found.wins == pytest.approx(differences[differences > 0].sum())
    assert found.low < found.difference < found.high


def test_an_accuracy_with_ties_has_an_interval_between_its_neighbours() -> None:
    low, high = wilson_interval(40.5, 50)
    assert wilson_interval(40, 50)[0] < low < wilson_interval(41, 50)[0]
    assert wilson_interval(40, 50)[1] < high < wilson_interval(41, 50)[1]


def test_holm_equals_statsmodels() -> None:
    p_values = [0.01, 0.04, 0.03, 0.005, 0.9]
    assert holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]))
    assert holm([]) == []


def test_the_variance_over_seeds_is_that_of_a_two_way_analysis() -> None:
    first, second = _draw(np.random.default_rng(3), seeds=3, examples=12, seed_effect=0.5)
    cells = pd.DataFrame(
        [
            {"seed": s, "example": e, "y": float(first[s, e]) - float(second[s, e])}
            for s in range(3)
            for e in range(12)
        ]
    )
    table = anova_lm(ols("y ~ C(seed) + C(example)", cells).fit())
    squares = table["mean_sq"]
    variance = max(
        squares["C(seed)"] + squares["C(example)"] - squares["Residual"],
        squares["C(seed)"],
        squares["C(example)"],
    ) / (3 * 12)
    from scipy.stats import t

    found = compare(first, second)
    # The interval's half width is Student's quantile times the error; solve for the freedom.
    freedom = (variance * 36) ** 2 / sum(
        value**2 / degrees for value, degrees in zip(squares, table["df"], strict=True)
    )
    half = t.ppf(0.975, freedom) * math.sqrt(variance)
    assert (found.high - found.low) / 2 == pytest.approx(half)
    assert found.p_value == pytest.approx(
        2 * t.sf(abs(found.difference) / math.sqrt(variance), freedom)
    )


@pytest.mark.parametrize(
    ("seeds", "seed_effect", "most"),
    [(1, 0.0, 0.07), (3, 0.2, 0.09), (5, 0.0, 0.07), (5, 0.2, 0.07)],
)
def test_without_a_difference_the_test_rejects_about_one_in_twenty(
    seeds: int, seed_effect: float, most: float
) -> None:
    random, trials = np.random.default_rng(0), 600
    found = [
        compare(*_draw(random, seeds, examples=300, seed_effect=seed_effect)) for _ in range(trials)
    ]
    rejected = np.mean([c.p_value < 0.05 for c in found])
    covered = np.mean([c.low <= 0 <= c.high for c in found])
    assert 0.01 < rejected < most
    assert 1 - most - 0.01 < covered < 0.995


def test_one_seed_rejects_too_often_where_seeds_differ() -> None:
    """Why a verdict on one seed is said to be of that seed alone."""
    random = np.random.default_rng(0)
    found = [compare(*_draw(random, 1, examples=300, seed_effect=0.3)) for _ in range(300)]
    assert np.mean([c.p_value < 0.05 for c in found]) > 0.15


@pytest.mark.parametrize(("seeds", "seed_effect"), [(1, 0.0), (4, 0.2), (8, 0.1)])
def test_the_interval_of_an_accuracy_covers_the_truth_at_about_its_level(
    seeds: int, seed_effect: float
) -> None:
    """Seeds and examples both vary; the truth is the mean over all of both."""
    random, trials = np.random.default_rng(1), 500
    wide = random.normal(0, math.hypot(_EXAMPLE, _OWN, _CELL, seed_effect), size=400_000)
    truth = float(np.mean(_chance(_BASE + wide)))
    intervals = [
        seeds_interval(_draw(random, seeds, examples=300, seed_effect=seed_effect)[0])
        for _ in range(trials)
    ]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.92 < covered < 0.99


@pytest.mark.parametrize(("seeds", "lowest"), [(1, 0.74), (5, 0.65)])
def test_the_number_of_examples_that_is_named_gives_about_the_power_that_is_named(
    seeds: int, lowest: float
) -> None:
    """With several seeds only about: how much seeds differ is estimated from few."""
    random = np.random.default_rng(0)
    pilot = compare(*_draw(random, seeds, examples=30_000, seed_effect=0.0, gain=0.25))
    assert pilot.needed_examples is not None
    found = [
        compare(*_draw(random, seeds, pilot.needed_examples, seed_effect=0.0, gain=0.25))
        for _ in range(400)
    ]
    assert lowest < np.mean([c.p_value < 0.05 for c in found]) < 0.9


def test_where_seeds_differ_more_than_methods_no_number_of_examples_is_named() -> None:
    first, second = _draw(np.random.default_rng(0), 3, examples=3000, seed_effect=0.6)
    found = compare(first, second)
    assert found.p_value > 0.05
    assert found.needed_examples is None
    assert found.needed_seeds is None or found.needed_seeds > 3


def test_the_number_of_seeds_that_is_named_gives_about_the_power_that_is_named() -> None:
    """The seeds' own spread is large and known from many, so that only the formula is tested."""
    random = np.random.default_rng(0)
    pilot = compare(*_draw(random, 400, examples=400, seed_effect=0.5, gain=0.4))
    assert pilot.needed_seeds is not None
    assert 5 < pilot.needed_seeds < 200
    found = [
        compare(*_draw(random, pilot.needed_seeds, 400, seed_effect=0.5, gain=0.4))
        for _ in range(200)
    ]
    assert 0.6 < np.mean([c.p_value < 0.05 for c in found]) < 0.95


def test_seeds_that_never_differ_leave_some_doubt() -> None:
    right = np.ones((3, 100), dtype=bool)
    found = compare(right, right)
    assert found.p_value == 1
    assert found.low < 0 < found.high


_BASE, _EXAMPLE, _OWN, _CELL = 0.8, 1.0, 0.6, 0.5


def _chance(logit: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-logit))


def _draw(
    random: np.random.Generator, seeds: int, examples: int, seed_effect: float, gain: float = 0.0
) -> tuple[Right, Right]:
    """Answers of two methods: examples are easy or hard for both, and for each by itself."""
    easy = random.normal(0, _EXAMPLE, size=(1, examples))
    sides = []
    for better in (gain, 0.0):
        own = random.normal(0, _OWN, size=(1, examples))
        cells = random.normal(0, _CELL, size=(seeds, examples))
        of_seed = random.normal(0, seed_effect, size=(seeds, 1))
        chance = _chance(_BASE + better + easy + own + cells + of_seed)
        sides.append(random.random(chance.shape) < chance)
    return sides[0], sides[1]


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("examples", [1, 2, 4, 400])
def test_unlucky_tables_give_numbers_all_the_same(seeds: int, examples: int) -> None:
    """Few seeds and examples, and seeds whose differences cancel out."""
    random = np.random.default_rng(0)
    tables = [random.random((2, seeds, examples)) < 0.7 for _ in range(100)]
    cancelling = np.zeros((2, seeds, examples), dtype=bool)
    cancelling[0, 0, ::2] = cancelling[1, 1, ::2] = True
    for first, second in [*tables, cancelling]:
        found = compare(first, second)
        assert 0 <= found.p_value <= 1
        assert -1 <= found.low <= found.difference <= found.high <= 1
