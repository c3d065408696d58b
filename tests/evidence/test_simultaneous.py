"""Simultaneous intervals against Šidák and Dunnett."""

import itertools

import numpy as np
import pytest
from scipy.stats import dunnett

from heft_pipeline.evidence.comparison import Comparison, compare
from heft_pipeline.evidence.simultaneous import simultaneous
from tests.evidence.tables import differences


def normal(random: np.random.Generator, seeds: int = 1, examples: int = 500) -> Comparison:
    return compare(random.normal(size=(seeds, examples)), accuracy=False)


@pytest.mark.parametrize("tests", [2, 5, 10])
def test_independent_tests_get_sidaks_level(tests: int) -> None:
    random = np.random.default_rng(0)
    found = simultaneous([[normal(random)] for _ in range(tests)])  # each on examples of its own
    assert found.alpha == pytest.approx(1 - 0.95 ** (1 / tests), rel=0.03)


def test_the_same_test_several_times_keeps_its_level() -> None:
    one = compare(differences(np.random.default_rng(0), 1, 2000))
    assert simultaneous([[one] * 10]).alpha == pytest.approx(0.05, rel=0.2)


def test_what_eight_seeds_show_of_a_correlation_is_taken_with_caution() -> None:
    one = compare(differences(np.random.default_rng(0), 8, 2000))
    assert 2 * 0.05 / 10 < simultaneous([[one] * 10]).alpha < 0.05


def test_a_single_test_keeps_its_level_and_p_value_exactly() -> None:
    found = simultaneous([[normal(np.random.default_rng(0))], []])
    assert found.alpha == 0.05
    assert found.adjusted(0.0123) == 0.0123


def test_comparisons_that_share_a_method_get_dunnetts_p_values() -> None:
    random = np.random.default_rng(1)
    control = random.normal(size=4000)
    others = [random.normal(loc, size=4000) for loc in (0.02, 0.05, 0.06, 0.0)]
    group = [compare((other - control)[None], accuracy=False) for other in others]
    found = simultaneous([group])
    adjusted = [found.adjusted(one.p_value()) for one in group]
    assert adjusted == pytest.approx(dunnett(*others, control=control).pvalue, abs=0.02)
    independent = 1 - 0.95 ** (1 / 4)
    assert independent < found.alpha < 0.05


@pytest.mark.parametrize("seeds", [2, 3, 6])
def test_shared_arms_raise_the_level_above_bonferronis(seeds: int) -> None:
    random = np.random.default_rng(0)
    arms = random.normal(size=(4, seeds, 600))
    group = [compare(arm - arms[0], accuracy=False) for arm in arms[1:]]
    assert 0.05 / 3 <= simultaneous([group]).alpha < 0.05


def test_few_seeds_do_not_pass_for_a_correlation() -> None:
    """Two seeds' deviations are always the same or opposite."""
    by_chance = np.random.default_rng(0).normal(size=(5, 2, 1)) + np.zeros((5, 2, 400))
    group = [compare(table, accuracy=False) for table in by_chance]
    assert simultaneous([group]).alpha == pytest.approx(1 - 0.95 ** (1 / 5), rel=0.03)


def test_comparisons_over_other_seeds_stand_together() -> None:
    random = np.random.default_rng(0)
    tables = [differences(random, 3, 300, seed_effect=0.3) for _ in range(2)]
    group = [compare(tables[0], seeds=[0, 1, 2]), compare(tables[1], seeds=[2, 5, 9])]
    assert 0.025 <= simultaneous([group]).alpha < 0.05


def test_an_adjusted_p_value_is_below_the_level_exactly_where_its_own_is_below_alpha() -> None:
    random = np.random.default_rng(0)
    for tests in (2, 3, 10, 40):
        shared = random.normal(size=(1, 300))
        groups = [
            [compare(shared + random.normal(size=(1, 300)), accuracy=False) for _ in range(2)]
            for _ in range(tests // 2)
        ]
        found = simultaneous(groups, draws=2**13)
        count = sum(map(len, groups))
        assert found.alpha >= 0.05 / count
        near = found.alpha * (1 + np.array([-1e-3, -1e-9, 1e-9, 1e-3]))
        for p_value in [*near, *random.random(200) ** 4, 0.0, 1.0]:
            adjusted = found.adjusted(float(p_value))
            assert (adjusted < 0.05) == (p_value < found.alpha)
            assert p_value <= adjusted <= min(1.0, count * p_value + 1e-12)


def test_adjusted_p_values_keep_the_order_of_p_values() -> None:
    random = np.random.default_rng(0)
    found = simultaneous([[normal(random) for _ in range(6)]])
    adjusted = [found.adjusted(p) for p in np.linspace(0, 1, 400)]
    assert all(one <= other for one, other in itertools.pairwise(adjusted))
