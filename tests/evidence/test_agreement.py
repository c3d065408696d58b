"""Agreement between seeds: by hand, against statsmodels, and with nothing to compare."""

import itertools
import math

import numpy as np
import pytest
from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa

from heft_pipeline.evidence.agreement import agreement


def test_two_seeds_agree_where_their_predictions_are_the_same() -> None:
    found = agreement(np.array([[0, 0, 1, 1], [0, 1, 1, -1]]))
    assert found is not None
    assert found.share.value == 0.5


def test_more_seeds_are_compared_in_pairs_and_kappa_is_fleiss() -> None:
    random = np.random.default_rng(0)
    common = random.integers(0, 3, 400)
    predictions = np.where(random.random((4, 400)) < 0.7, common, random.integers(0, 3, (4, 400)))
    found = agreement(predictions)
    assert found is not None
    pairs = itertools.combinations(predictions, 2)
    assert found.share.value == pytest.approx(np.mean([(a == b).mean() for a, b in pairs]))
    expected = fleiss_kappa(aggregate_raters(predictions.T)[0])
    assert found.kappa.value == pytest.approx(expected)
    assert found.kappa.low < expected < found.kappa.high
    assert found.share.low < found.share.value < found.share.high


def test_agreement_by_chance_is_no_agreement() -> None:
    """Seeds that say yes nine times in ten agree on most examples, and mean nothing by it."""
    random = np.random.default_rng(1)
    found = agreement((random.random((2, 5000)) < 0.1).astype(np.int64))
    assert found is not None
    assert found.share.value > 0.8
    assert found.kappa.low < 0 < found.kappa.high


def test_kappa_is_unknown_where_all_predictions_are_the_same() -> None:
    found = agreement(np.zeros((3, 20), dtype=np.int64))
    assert found is not None
    assert found.share.value == 1.0
    assert math.isnan(found.kappa.value)


def test_one_seed_has_nothing_to_agree_with() -> None:
    assert agreement(np.zeros((1, 20), dtype=np.int64)) is None


def test_examples_that_belong_together_widen_the_interval() -> None:
    random = np.random.default_rng(2)
    predictions = np.repeat(random.integers(0, 2, (2, 40)), 25, axis=1)
    alone, together = agreement(predictions), agreement(predictions, np.repeat(np.arange(40), 25))
    assert alone is not None and together is not None
    assert together.share.high - together.share.low > 3 * (alone.share.high - alone.share.low)
