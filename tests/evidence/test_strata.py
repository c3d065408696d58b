"""Means over several tasks, against a computation by hand and against one task."""

import dataclasses
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import t, ttest_1samp

from heft_pipeline.evidence.comparison import BOTH, EXAMPLES, SEEDS, Comparison, compare
from heft_pipeline.evidence.intervals import accuracy_interval, wilson_interval
from heft_pipeline.evidence.simultaneous import simultaneous
from heft_pipeline.evidence.strata import stratified
from heft_pipeline.evidence.two_way_variance import two_way, two_way_over_strata
from tests.evidence.tables import clusters_of, differences

SIZES = (40, 90, 400)
STRATA = np.repeat(np.arange(3), SIZES)


def tables(seeds: int, by_logprob: bool = True) -> list[NDArray[np.float64]]:
    random = np.random.default_rng(7)
    return [
        differences(random, seeds, size, seed_effect=0.4, gain=gain, by_logprob=by_logprob)
        for size, gain in zip(SIZES, (1.5, 0.2, 0.0), strict=True)
    ]


def joined(seeds: int, by_logprob: bool = True) -> NDArray[np.float64]:
    return np.concatenate(tables(seeds, by_logprob), axis=1)


def plain(found: Comparison) -> dict[str, object]:
    named = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    arrays = found.by_seed, found.deviations.of_seeds, found.deviations.of_examples
    return named | {"by_seed": 0, "deviations": [one.tolist() for one in arrays]}


@pytest.mark.parametrize("by_logprob", [False, True])
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_mean_is_of_the_tasks_means_and_not_of_all_examples(
    seeds: int, by_logprob: bool
) -> None:
    values = joined(seeds, by_logprob)
    found = compare(values, strata=STRATA, accuracy=not by_logprob)
    by_hand = np.mean([table.mean() for table in tables(seeds, by_logprob)])
    assert found.difference == pytest.approx(by_hand)
    assert abs(values.mean() - by_hand) > 0.02
    assert found.by_seed.mean() == pytest.approx(by_hand)
    assert (found.tasks, found.examples) == (3, sum(SIZES))


def test_the_variance_over_tasks_is_that_computed_by_hand() -> None:
    each, seeds = tables(3), 3
    of_seeds = np.var(np.mean([one.mean(axis=1) for one in each], axis=0), ddof=1) / seeds
    parts = [one.mean(axis=0).var(ddof=1) / one.shape[1] / 9 for one in each]
    rest = sum(two_way(one).components.of_rest / one.size for one in each) / 9
    total = of_seeds + sum(parts) - rest
    assert total > max(of_seeds, sum(parts))
    freedom = sum(parts) ** 2 / sum(
        part**2 / (size - 1) for part, size in zip(parts, SIZES, strict=True)
    )
    found = two_way_over_strata(stratified(joined(3), None, STRATA))
    assert found.variance == pytest.approx(total)
    assert found.quantiles.weight == pytest.approx(of_seeds / total)
    assert found.quantiles.seeds == 2
    assert found.quantiles.examples == pytest.approx(freedom)
    assert sum(found.components.variances) == pytest.approx(total)
    assert found.components.error == pytest.approx(math.sqrt(total))
    assert found.components.quantiles.weight == pytest.approx(of_seeds / total)
    assert found.components.quantiles.examples == pytest.approx(freedom)


@pytest.mark.parametrize("by_logprob", [False, True])
@pytest.mark.parametrize("scope", [BOTH, SEEDS, EXAMPLES])
@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_one_task_is_what_no_tasks_are(seeds: int, scope: str, by_logprob: bool) -> None:
    random = np.random.default_rng(0)
    values = differences(random, seeds, 150, seed_effect=0.3, by_logprob=by_logprob)
    one = np.zeros(150, dtype=np.int64)
    for clusters in (None, clusters_of(random, 150, 6)):
        how = {"clusters": clusters, "scope": scope, "accuracy": not by_logprob}
        expected = plain(compare(values, **how))  # type: ignore[arg-type]
        assert plain(compare(values, strata=one, **how)) == expected  # type: ignore[arg-type]
        right = values > 0
        assert accuracy_interval(right, clusters, strata=one) == accuracy_interval(right, clusters)


def test_tasks_of_one_size_and_seed_effects_of_their_own_are_independent_means() -> None:
    """Two tasks with the same table: half of the examples' variance, and all of the seeds'."""
    table = differences(np.random.default_rng(0), 4, 200, seed_effect=0.5, by_logprob=True)
    twice = two_way_over_strata(
        stratified(np.tile(table, 2), None, np.repeat(np.arange(2), 200))
    ).components.variances
    seeds, examples, rest = two_way(table).components.variances
    # The rest of both tables is the same here, and so counts for the seeds.
    assert twice[0] == pytest.approx(seeds + rest / 2)
    assert twice[1:] == pytest.approx((examples / 2, rest / 2))


def test_over_seeds_alone_it_is_students_test_over_the_seeds_means_over_tasks() -> None:
    each = tables(5)
    found = compare(joined(5), strata=STRATA, scope=SEEDS, accuracy=False)
    expected = ttest_1samp(np.mean([one.mean(axis=1) for one in each], axis=0), 0)
    assert found.p_value() == pytest.approx(expected.pvalue)
    assert found.estimate.interval(0.05) == pytest.approx(tuple(expected.confidence_interval()))


@pytest.mark.parametrize("by_logprob", [False, True])
def test_one_seed_gets_students_interval_with_satterthwaites_freedom(by_logprob: bool) -> None:
    parts = [one[0].var(ddof=1) / one.shape[1] / 9 for one in tables(1, by_logprob)]
    freedom = sum(parts) ** 2 / sum(p**2 / (n - 1) for p, n in zip(parts, SIZES, strict=True))
    found = compare(joined(1, by_logprob), strata=STRATA, accuracy=not by_logprob)
    low, high = found.estimate.interval(0.05)
    assert high - low == pytest.approx(2 * t.isf(0.025, freedom) * math.sqrt(sum(parts)))
    assert found.half_width(0.05) == pytest.approx((high - low) / 2)


def test_clusters_of_each_task_take_the_place_of_its_examples() -> None:
    values, sizes = joined(1), (2, 5, 10)
    each = [np.arange(n) // size for n, size in zip(SIZES, sizes, strict=True)]
    clusters = np.unique(STRATA * 1000 + np.concatenate(each), return_inverse=True)[1]
    found = compare(values, clusters=clusters, strata=STRATA, accuracy=False)
    parts = [
        one[0].reshape(-1, size).mean(axis=1).var(ddof=1) / (one.shape[1] // size) / 9
        for one, size in zip(tables(1), sizes, strict=True)
    ]
    assert found.clusters == 20 + 18 + 40
    assert found.components.error == pytest.approx(math.sqrt(sum(parts)))
    with pytest.raises(ValueError, match="several tasks"):
        compare(values, clusters=np.arange(sum(SIZES)) // 100, strata=STRATA)


def test_a_task_in_which_no_answer_differs_leaves_doubt_however_large_the_others_are() -> None:
    random = np.random.default_rng(0)
    large = differences(random, 1, 5000)
    values = np.concatenate([np.zeros((1, 30)), large], axis=1)
    strata = np.repeat(np.arange(2), [30, 5000])
    low, high = compare(values, strata=strata).estimate.interval(0.05)
    of_small = math.sqrt(2) / 32 / 2
    assert high - low > 2 * 1.96 * of_small
    right = np.concatenate([np.ones((1, 30)), large > 0], axis=1)
    low, high = accuracy_interval(right, strata=strata)
    assert high - low > 2 * 1.96 / 32 / 2 * 0.9


def test_a_task_of_one_cluster_shows_nothing_of_its_other_examples() -> None:
    values = joined(3)
    clusters = np.where(STRATA == 0, 0, np.arange(sum(SIZES)))
    found = compare(values, clusters=clusters, strata=STRATA, accuracy=False)
    assert found.p_value() == 1
    assert found.needed(0.1, 0.05) == (None, None)


def test_the_accuracy_of_all_right_tasks_is_wilsons_of_what_their_examples_are_worth() -> None:
    worth = 9 / sum(1 / size for size in SIZES)
    right = np.ones((1, sum(SIZES)))
    low, high = accuracy_interval(right, strata=STRATA)
    assert (low, high) == pytest.approx(wilson_interval(worth, worth))
    assert high == 1


def test_an_accuracys_interval_is_around_the_mean_over_tasks() -> None:
    right = np.concatenate(
        [np.arange(n) < share * n for n, share in zip(SIZES, (0.9, 0.5, 0.4), strict=True)]
    )
    low, high = accuracy_interval(right[None], strata=STRATA)
    variance = sum(p * (1 - p) / (n - 1) / 9 for n, p in zip(SIZES, (0.9, 0.5, 0.4), strict=True))
    assert (low + high) / 2 == pytest.approx(0.6, abs=0.01)
    assert high - low == pytest.approx(2 * 1.97 * math.sqrt(variance), rel=0.03)
    assert high < right.mean() + 0.3


def test_more_examples_means_as_many_times_more_of_each_task() -> None:
    values = joined(3)
    found = compare(values, strata=STRATA, accuracy=False)
    more = compare(np.repeat(values, 4, axis=1), strata=np.repeat(STRATA, 4), accuracy=False)
    of_seeds, of_examples, rest = found.components.variances
    quadrupled = found.components.resized(examples=4 * sum(SIZES)).variances
    assert quadrupled == pytest.approx((of_seeds, of_examples / 4, rest / 4))
    assert more.components.variances[1] == pytest.approx(of_examples / 4, rel=0.05)
    assert found.half_width(0.05, examples=3 * sum(SIZES)) < found.half_width(0.05)


def test_the_number_of_examples_that_is_named_would_make_the_interval_short_enough() -> None:
    found = compare(joined(1), strata=STRATA, accuracy=False)
    _, needed = found.needed(0.05, 0.05)
    assert needed is not None
    then = found.half_width(0.05, examples=needed - sum(SIZES))
    assert then == pytest.approx(0.05 * 1.96 / (1.96 + 0.8416), rel=0.02)


def test_comparisons_over_tasks_that_share_a_method_are_correlated_as_their_means_are() -> None:
    """A large task hardly counts for the correlation if a small one makes the variance."""
    random = np.random.default_rng(0)
    small = random.normal(size=(1, 40))
    group = [
        compare(
            np.concatenate([small, random.normal(size=(1, 4000))], axis=1),
            strata=np.repeat(np.arange(2), [40, 4000]),
            accuracy=False,
        )
        for _ in range(4)
    ]
    assert simultaneous([group]).alpha > 0.035
    pooled = [dataclasses.replace(one, deviations=_unweighted(one)) for one in group]
    assert simultaneous([pooled]).alpha < 0.015


def _unweighted(found: Comparison):  # type: ignore[no-untyped-def]
    weights = np.repeat([40, 4000], [40, 4000])
    return dataclasses.replace(found.deviations, of_examples=found.deviations.of_examples * weights)
