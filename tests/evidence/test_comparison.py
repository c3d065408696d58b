"""Comparisons against scipy and statsmodels."""

import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from numpy.typing import NDArray
from scipy.stats import binomtest, permutation_test, t, ttest_1samp
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.weightstats import ttost_paired

from heft_pipeline.evidence.claims import Claim, Side
from heft_pipeline.evidence.comparison import BOTH, EXAMPLES, SEEDS, compare, least_p_value
from heft_pipeline.evidence.estimates import ScoreEstimate
from tests.evidence.tables import clusters_of, differences


def test_the_test_of_one_seed_is_mcnemars() -> None:
    random = np.random.default_rng(0)
    first, second = random.random((2, 1, 200)) < [[[0.7]], [[0.6]]]
    table = pd.crosstab(first[0], second[0]).to_numpy()
    found = compare(first.astype(float) - second)
    expected = mcnemar(table, exact=False, correction=False).pvalue
    assert found.p_value() == pytest.approx(expected)
    assert (found.wins, found.losses) == (table[1, 0], table[0, 1])
    assert found.difference == pytest.approx(first.mean() - second.mean())
    assert (found.seeds, found.examples, found.clusters) == ((0,), 200, None)


def test_exact_ties_count_as_what_chance_gives_them() -> None:
    found = compare(np.array([[1, 0.5, 0.5, 1, 1 / 3, -1, 0, 0, 0.5, 1]]))
    assert found.estimate == ScoreEstimate(1 + 0.5 + 0.5 + 1 + 1 / 3 + 0.5 + 1, 1.0, 10)
    low, high = found.estimate.interval(0.05)
    assert low < found.difference < high


@pytest.mark.parametrize("by_logprob", [False, True])
def test_clusters_of_one_seed_give_statsmodels_cluster_robust_errors(by_logprob: bool) -> None:
    """Its degrees of freedom are fewer where clusters differ in size."""
    random = np.random.default_rng(0)
    values = differences(random, 1, 300, gain=0.2, by_logprob=by_logprob)
    clusters = clusters_of(random, 300, 12)
    robust = sm.OLS(values[0], np.ones(300)).fit(
        cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True
    )
    found = compare(values, clusters=clusters, accuracy=not by_logprob)
    assert found.clusters == clusters.max() + 1
    assert found.difference == pytest.approx(robust.params[0])
    freedom = 300**2 / (np.bincount(clusters) ** 2).sum() - 1
    assert freedom < clusters.max()
    assert found.p_value() == pytest.approx(2 * t.sf(abs(robust.tvalues[0]), freedom))
    half = t.isf(0.05, freedom) * robust.bse[0]
    ends = robust.params[0] - half, robust.params[0] + half
    assert found.estimate.interval(0.1) == pytest.approx(ends)


def test_clusters_of_one_size_give_statsmodels_interval_and_p_value() -> None:
    values = differences(np.random.default_rng(0), 1, 300, gain=0.2)
    clusters = np.arange(300) // 5
    robust = sm.OLS(values[0], np.ones(300)).fit(
        cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True
    )
    found = compare(values, clusters=clusters)
    assert found.p_value() == pytest.approx(robust.pvalues[0])
    assert found.estimate.interval(0.1) == pytest.approx(tuple(robust.conf_int(0.1)[0]))


def test_one_seeds_log_probabilities_get_students_test() -> None:
    values = differences(np.random.default_rng(0), 1, 100, by_logprob=True)
    _equals_students(compare(values, accuracy=False), values[0])


@pytest.mark.parametrize("by_logprob", [False, True])
@pytest.mark.parametrize(("scope", "axis"), [(SEEDS, 1), (EXAMPLES, 0)])
def test_a_scope_of_one_kind_is_students_test_over_its_means(
    scope: str, axis: int, by_logprob: bool
) -> None:
    values = differences(np.random.default_rng(0), 4, 200, gain=0.2, by_logprob=by_logprob)
    found = compare(values, scope=scope, accuracy=not by_logprob)
    _equals_students(found, values.mean(axis=axis))


def _equals_students(found, values: NDArray[np.float64]) -> None:  # type: ignore[no-untyped-def]
    expected = ttest_1samp(values, 0.05)
    assert found.p_value([0.05]) == pytest.approx(expected.pvalue)
    assert found.estimate.interval(0.05) == pytest.approx(tuple(expected.confidence_interval()))


def test_other_seeds_on_these_examples_do_not_ask_for_the_examples_clusters() -> None:
    values = np.array([[1.0, 0, 0, 0, -1, 0, 0, 1] * 5, [1.0, 0, 0, 1, -1, 0, 0, 0] * 5])
    plain = compare(values, scope=SEEDS).estimate.interval(0.05)
    found = compare(values, clusters=np.arange(40) // 8, scope=SEEDS).estimate.interval(0.05)
    assert found == pytest.approx(plain)


@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_speaking_of_other_seeds_too_makes_no_interval_narrower(seeds: int) -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        values = differences(random, seeds, 100, seed_effect=0.2)
        narrow = compare(values, scope=EXAMPLES).estimate.interval(0.05)
        low, high = compare(values, scope=BOTH).estimate.interval(0.05)
        assert low <= narrow[0] + 1e-12
        assert high >= narrow[1] - 1e-12


def test_one_seed_speaks_of_examples_whatever_is_asked() -> None:
    values = differences(np.random.default_rng(0), 1, 200)
    assert {compare(values, scope=scope).scope for scope in (BOTH, SEEDS, EXAMPLES)} == {EXAMPLES}


@pytest.mark.parametrize("null", [0.0, 0.03])
@pytest.mark.parametrize("seeds", [6, 9])
def test_the_sign_flip_test_is_scipys_permutation_test(seeds: int, null: float) -> None:
    values = differences(np.random.default_rng(0), seeds, 50, seed_effect=0.4)
    expected = permutation_test(
        (values.mean(axis=1) - null,), np.sum, permutation_type="samples", n_resamples=math.inf
    )
    assert compare(values).sign_flip([null]) == pytest.approx(expected.pvalue)


def test_many_seeds_flip_random_signs() -> None:
    by_seed = np.random.default_rng(0).normal(0.5, 1, size=(20, 1))
    expected = ttest_1samp(by_seed[:, 0], 0).pvalue
    found = compare(np.repeat(by_seed, 3, axis=1), accuracy=False).sign_flip()
    assert found == pytest.approx(expected, abs=0.01)


def test_five_seeds_cannot_reach_the_level_by_flipping_signs_and_six_can() -> None:
    assert compare(np.full((5, 3), 0.1)).sign_flip() is None
    assert compare(np.full((6, 3), 0.1)).sign_flip() == pytest.approx(2 / 2**6)


def test_equivalence_is_two_one_sided_tests_at_half_the_level_each() -> None:
    random = np.random.default_rng(0)
    first = random.normal(size=(1, 80))
    second = first + random.normal(0.05, 0.5, size=(1, 80))
    margin = 0.2
    one_sided, _, _ = ttost_paired(first[0], second[0], -margin, margin)
    found = compare(first - second, accuracy=False)
    claim = Claim(Side("a", (1,), None), Side("b", (1,), None), "=", margin, "logprob")
    assert found.p_value(claim.boundaries) == pytest.approx(2 * one_sided)
    for alpha in (2 * one_sided * 1.001, 2 * one_sided * 0.999):
        assert (claim.holds(*found.estimate.interval(alpha)) is True) == (2 * one_sided < alpha)


@pytest.mark.parametrize("by_logprob", [False, True])
@pytest.mark.parametrize("seeds", range(1, 9))
def test_an_interval_leaves_out_a_value_exactly_where_its_p_value_is_below_alpha(
    seeds: int, by_logprob: bool
) -> None:
    random = np.random.default_rng(seeds)
    for trial in range(20):
        examples = int(random.integers(1, 60))
        values = differences(random, seeds, examples, seed_effect=0.4, by_logprob=by_logprob)
        clusters = clusters_of(random, examples, 5) if trial % 2 else None
        for scope in (BOTH, SEEDS, EXAMPLES):
            found = compare(values, clusters=clusters, scope=scope, accuracy=not by_logprob)
            null, alpha = float(random.normal(0, 0.2)), float(random.choice([0.05, 0.012, 0.3]))
            for value in (0.0, null):
                low, high = found.estimate.interval(alpha)
                assert (low <= value <= high) == (found.p_value([value]) >= alpha)


@pytest.mark.parametrize("by_logprob", [False, True])
@pytest.mark.parametrize("scope", [BOTH, SEEDS, EXAMPLES])
@pytest.mark.parametrize("examples", [1, 2, 4, 400])
@pytest.mark.parametrize("seeds", [1, 2, 3, 7])
def test_unlucky_tables_give_numbers_all_the_same(
    seeds: int, examples: int, scope: str, by_logprob: bool
) -> None:
    """Few seeds, examples or clusters; none that differ; and seeds that cancel out."""
    random = np.random.default_rng(0)
    tables = [differences(random, seeds, examples, by_logprob=by_logprob) for _ in range(10)]
    cancelling = np.zeros((seeds, examples))
    cancelling[0], cancelling[-1] = 1, -1
    for values in [*tables, cancelling, np.zeros((seeds, examples)), np.ones((seeds, examples))]:
        for clusters in (None, np.zeros(examples, dtype=np.int64), np.arange(examples) // 2):
            if clusters is not None and clusters.max() + 1 == examples:
                continue
            found = compare(values, clusters=clusters, scope=scope, accuracy=not by_logprob)
            low, high = found.estimate.interval(0.05)
            assert low <= found.difference <= high
            assert by_logprob or -1 <= low <= high <= 1
            assert 0 <= found.p_value() <= 1
            assert 0 <= (found.sign_flip() or 0.0) <= 1
            assert found.half_width(0.05, seeds=1, examples=1) >= 0
            assert all(number is None or number > 1 for number in found.needed(0.1, 0.05))


@pytest.mark.parametrize("seeds", [1, 5])
@pytest.mark.parametrize("scope", [BOTH, EXAMPLES])
def test_one_cluster_shows_nothing_of_other_examples(seeds: int, scope: str) -> None:
    values = np.random.default_rng(0).normal(1.0, 0.1, size=(seeds, 30))
    one = np.zeros(30, dtype=np.int64)
    found = compare(values, clusters=one, scope=scope, accuracy=False)
    assert found.p_value() == 1
    assert found.estimate.interval(0.05) == (-math.inf, math.inf)
    assert found.needed(0.1, 0.05) == (None, None)


def test_where_no_answer_differs_some_doubt_is_left() -> None:
    for seeds in (1, 3):
        found = compare(np.zeros((seeds, 100)))
        low, high = found.estimate.interval(0.05)
        assert found.p_value() == 1
        assert -0.06 < low < -0.01
        assert high == pytest.approx(-low)


def test_where_few_of_many_clusters_differ_little_more_doubt_is_left_than_with_examples() -> None:
    """Clusters might differ as a whole; those that do differ show whether they do."""
    values, clusters = np.zeros((1, 400)), np.arange(400) // 10
    assert compare(values, clusters=clusters).estimate.interval(0.05)[1] > 0.06
    values[0, ::10] = np.tile([1.0, -1.0], 20)  # one example of each cluster
    by_hand = math.sqrt(40 / 39 * 40) / 400
    found = compare(values, clusters=clusters).estimate
    assert found.interval(0.05)[1] == pytest.approx(t.isf(0.025, 39) * by_hand)


def test_the_smallest_p_value_is_the_one_where_one_method_alone_is_right() -> None:
    assert least_p_value(0) == 1
    assert least_p_value(7) == pytest.approx(binomtest(7, 7).pvalue)


def _power(seeds: int, examples: int, trials: int, **table: float) -> float:
    random = np.random.default_rng(1)
    found = [compare(differences(random, seeds, examples, **table)) for _ in range(trials)]  # type: ignore[arg-type]
    ends = [one.estimate.interval(0.05) for one in found]
    return float(np.mean([low > 0 for low, _ in ends]))


@pytest.mark.parametrize(("seeds", "lowest"), [(1, 0.72), (5, 0.65)])
def test_the_number_of_examples_that_is_named_gives_about_the_power_that_is_named(
    seeds: int, lowest: float
) -> None:
    """With several seeds only about: how much seeds differ is estimated from few."""
    pilot = compare(differences(np.random.default_rng(0), seeds, 30_000, gain=0.25))
    _, examples = pilot.needed(pilot.difference, 0.05)
    assert examples is not None
    assert lowest < _power(seeds, examples, 400, gain=0.25) < 0.9


def test_the_number_of_seeds_that_is_named_gives_about_the_power_that_is_named() -> None:
    """The seeds' spread is large, and known from many, so that only the formula is tested."""
    table = {"seed_effect": 0.5, "gain": 0.4}
    random = np.random.default_rng(0)
    pilot = compare(differences(random, 400, 400, **table))  # type: ignore[arg-type]
    truth = np.mean([differences(random, 50, 4000, **table).mean() for _ in range(40)])  # type: ignore[arg-type]
    seeds, _ = pilot.needed(float(truth), 0.05)
    assert seeds is not None
    assert 5 < seeds < 200
    assert 0.65 < _power(seeds, 400, 200, **table) < 0.95


def test_examples_are_named_in_whole_clusters_worth() -> None:
    """Where each example is there twice, twice as many are needed."""
    values = differences(np.random.default_rng(0), 1, 500)
    _, plain = compare(values, scope=EXAMPLES).needed(0.02, 0.05)
    doubled = compare(np.repeat(values, 2, axis=1), clusters=np.repeat(np.arange(500), 2))
    _, examples = doubled.needed(0.02, 0.05)
    assert plain is not None
    assert examples == 2 * plain


def test_nothing_is_named_that_would_not_help() -> None:
    values = differences(np.random.default_rng(0), 3, 3000, seed_effect=0.6)
    found = compare(values)
    assert found.p_value() > 0.05
    seeds, examples = found.needed(0.01, 0.05)
    assert examples is None
    assert seeds is None or seeds > 3
    assert compare(values, scope=EXAMPLES).needed(0.01, 0.05)[0] is None
    assert compare(values, scope=SEEDS).needed(0.01, 0.05)[1] is None
    assert compare(values[:1]).needed(0.01, 0.05)[0] is None
    assert found.needed(0.0, 0.05) == (None, None)


def test_the_expected_width_falls_with_more_seeds_and_more_examples() -> None:
    found = compare(differences(np.random.default_rng(0), 4, 300, seed_effect=0.3))
    now = found.half_width(0.05)
    low, high = found.estimate.interval(0.05)
    assert now == pytest.approx((high - low) / 2, rel=0.05)
    assert found.half_width(0.05, seeds=4) < now
    assert found.half_width(0.05, examples=300) < now
    over_seeds = compare(differences(np.random.default_rng(0), 4, 300), scope=SEEDS)
    assert over_seeds.half_width(0.05, seeds=1) < over_seeds.half_width(0.05)
