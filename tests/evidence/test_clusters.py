import numpy as np
import pytest

from heft_pipeline.evidence.clusters import by_cluster, evenness, numbered


def test_examples_without_clusters_stay_as_they_are() -> None:
    cells = np.ones((2, 3))
    assert by_cluster(cells, None) is cells


def test_clusters_of_one_size_become_their_means() -> None:
    cells = np.random.default_rng(0).normal(size=(3, 12))
    found = by_cluster(cells, np.repeat(np.arange(4), 3))
    assert found == pytest.approx(cells.reshape(3, 4, 3).mean(axis=2))


def test_each_seed_keeps_its_mean_over_examples_however_large_the_clusters() -> None:
    cells = np.random.default_rng(0).normal(size=(3, 10))
    clusters = np.array([0, 1, 1, 2, 2, 2, 2, 2, 2, 3])
    found = by_cluster(cells, clusters)
    assert found.shape == (3, 4)
    assert found.mean(axis=1) == pytest.approx(cells.mean(axis=1))


def test_clusters_are_worth_their_number_where_all_have_one_size_and_else_less() -> None:
    assert evenness(None) == 1
    assert evenness(np.repeat(np.arange(7), 3)) == pytest.approx(1)
    one_large = np.repeat(np.arange(41), [40, *[1] * 40])
    assert 41 * evenness(one_large) == pytest.approx(80**2 / (40**2 + 40))


def test_clusters_are_numbered_without_gaps_wherever_they_stand() -> None:
    found = numbered(["b", "a", "b", "c", "a"])
    assert found is not None
    assert list(found) == [1, 0, 1, 2, 0]


def test_clusters_of_one_example_each_are_none() -> None:
    assert numbered(["x", "y", "z"]) is None
    assert numbered([]) is None
