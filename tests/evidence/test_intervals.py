"""The intervals of accuracies against statsmodels."""

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from heft_pipeline.evidence.intervals import accuracy_interval, wilson_interval


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (7, 10), (85, 100), (2785, 3270)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_wilsons_interval_is_that_of_statsmodels(
    correct: int, total: int, confidence: float
) -> None:
    expected = proportion_confint(correct, total, alpha=1 - confidence, method="wilson")
    assert wilson_interval(correct, total, confidence) == pytest.approx(expected)


def test_one_seed_gives_wilsons_interval() -> None:
    assert accuracy_interval(np.arange(50)[None] < 40) == wilson_interval(40, 50)


def test_equal_seeds_give_about_wilsons_interval() -> None:
    """Seeds that all answer alike add no knowledge and no doubt."""
    right = np.repeat(np.arange(400)[None] < 300, 4, axis=0)
    assert accuracy_interval(right) == pytest.approx(wilson_interval(300, 400), abs=1e-3)


def test_an_accuracy_with_ties_has_an_interval_between_its_neighbours() -> None:
    low, high = wilson_interval(40.5, 50)
    assert wilson_interval(40, 50)[0] < low < wilson_interval(41, 50)[0]
    assert wilson_interval(40, 50)[1] < high < wilson_interval(41, 50)[1]


@pytest.mark.parametrize("seeds", [1, 4])
def test_examples_that_are_there_twice_count_once(seeds: int) -> None:
    right = np.repeat(np.arange(400)[None] < 300, seeds, axis=0)
    doubled = np.repeat(right, 2, axis=1)
    found = accuracy_interval(doubled, np.repeat(np.arange(400), 2))
    assert found == pytest.approx(wilson_interval(300, 400), abs=1e-3)


def test_clusters_of_one_size_whose_examples_are_independent_change_little() -> None:
    right = np.random.default_rng(0).random((1, 4000)) < 0.8
    plain = wilson_interval(float(right.sum()), 4000)
    found = accuracy_interval(right, np.repeat(np.arange(2000), 2))
    assert found == pytest.approx(plain, abs=2e-3)


def test_seeds_that_differ_widen_the_interval_however_many_examples_there_are() -> None:
    right = np.stack([np.arange(100_000) < 100_000 * share for share in (0.7, 0.8, 0.75)])
    low, high = accuracy_interval(right)
    assert low < 0.69
    assert high > 0.81


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize(("seeds", "clustered"), [(1, False), (1, True), (3, False), (3, True)])
def test_all_right_and_all_wrong_leave_some_doubt(
    value: float, seeds: int, clustered: bool
) -> None:
    """As much as the independent examples, or clusters, leave."""
    clusters = np.repeat(np.arange(20), 2) if clustered else None
    found = accuracy_interval(np.full((seeds, 40), value), clusters)
    count = 20 if clustered else 40
    assert found == wilson_interval(value * count, count)


@pytest.mark.parametrize("seeds", [1, 2, 3])
@pytest.mark.parametrize("examples", [1, 2, 4, 400])
@pytest.mark.parametrize("count", [1, 2, None])
def test_unlucky_tables_give_numbers_all_the_same(
    seeds: int, examples: int, count: int | None
) -> None:
    random = np.random.default_rng(0)
    clusters = None if count is None or count > examples else np.arange(examples) % count
    for _ in range(50):
        right = random.random((seeds, examples)) < 0.7
        low, high = accuracy_interval(right, clusters)
        assert 0 <= low <= right.mean() <= high <= 1
        assert low < high
