"""Calibration: by hand, against independent computations, and what its intervals hold."""

import numpy as np
import pytest

from heft_pipeline.evidence.calibration import (
    calibration,
    choice_probabilities,
    confidences,
    expected_calibration_error,
    squared_errors,
    usable,
)


def logs(probabilities: list[list[float]]) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array(probabilities))


def drawn(examples: int, seed: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of a calibrated model, made more or less sure, and the right answers."""
    random = np.random.default_rng(seed)
    truth = random.random(examples)
    gold = (random.random(examples) > truth).astype(np.int64)
    table = np.log(np.stack([truth, 1 - truth], axis=1))
    return sharpness * table, gold


def test_a_hand_computed_example() -> None:
    # Four answers with confidences 0.9, 0.9, 0.6 and 0.5, of which the first and third are right.
    table = logs([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.5, 0.5]])
    gold = np.array([0, 1, 1, 0])
    found = calibration(table[None], gold)
    assert found is not None
    # Two in the bin of 0.9: |1/2 - 0.9|; one in that of 0.6: |1 - 0.6|; a tie of 0.5: half right.
    assert found.error.value == pytest.approx((2 * 0.4 + 0.4 + 0.0) / 4)
    # 2 x 0.1^2, 2 x 0.9^2, 2 x 0.4^2 and 2 x 0.5^2.
    assert found.brier.value == pytest.approx((0.02 + 1.62 + 0.32 + 0.5) / 4)


def test_log_probabilities_of_whole_choices_are_normalised_over_the_choices() -> None:
    table = np.array([[-1000.0, -1001.0, -1002.0]])
    expected = np.exp([0.0, -1.0, -2.0]) / np.exp([0.0, -1.0, -2.0]).sum()
    np.testing.assert_allclose(choice_probabilities(table)[0], expected)


def test_errors_equal_a_plain_loop_over_bins() -> None:
    random = np.random.default_rng(3)
    table, gold = np.log(random.dirichlet([1, 1, 1], 500)), random.integers(0, 3, 500)
    probabilities = choice_probabilities(table)
    confidence, right = confidences(probabilities, gold)
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(confidence, right) == pytest.approx(expected)
    np.testing.assert_array_equal(right, probabilities.argmax(axis=1) == gold)
    by_class = np.eye(3)[gold]
    expected_brier = ((probabilities - by_class) ** 2).sum(axis=1).mean()
    assert squared_errors(probabilities, gold).mean() == pytest.approx(expected_brier)


def test_overconfidence_is_told_from_calibration() -> None:
    table, gold = drawn(2000, seed=1, sharpness=1.0)
    good, bold = calibration(table[None], gold), calibration(4 * table[None], gold)
    assert good is not None and bold is not None
    assert good.error.value < 2 * good.error_by_chance
    assert bold.error.low > 3 * bold.error_by_chance
    assert bold.brier.low > good.brier.high


def test_intervals_cover_what_other_examples_would_show() -> None:
    table, gold = drawn(100_000, seed=2, sharpness=3.0)
    truth = calibration(table[None], gold)
    assert truth is not None
    held = [0, 0]
    for number in range(100):
        part = slice(1000 * number, 1000 * (number + 1))
        found = calibration(table[None, part], gold[part])
        assert found is not None
        held[0] += found.error.low <= truth.error.value <= found.error.high
        held[1] += found.brier.low <= truth.brier.value <= found.brier.high
    assert min(held) >= 88


def test_examples_that_belong_together_widen_the_intervals() -> None:
    table, gold = drawn(50, seed=4, sharpness=1.0)
    repeated, twin_gold = np.repeat(table, 20, axis=0)[None], np.repeat(gold, 20)
    alone = calibration(repeated, twin_gold)
    together = calibration(repeated, twin_gold, np.repeat(np.arange(50), 20))
    assert alone is not None and together is not None
    assert alone.brier.value == together.brier.value
    widths = [one.brier.high - one.brier.low for one in (alone, together)]
    assert widths[1] > 3 * widths[0]


def test_seeds_that_differ_widen_the_interval() -> None:
    table, gold = drawn(3000, seed=5, sharpness=1.0)
    same = calibration(np.stack([table, table, table]), gold)
    apart = calibration(np.stack([table, 2 * table, 5 * table]), gold)
    assert same is not None and apart is not None
    assert apart.brier.high - apart.brier.low > 2 * (same.brier.high - same.brier.low)


def test_examples_without_probabilities_are_left_out_and_counted() -> None:
    table = logs([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [1.0, 0.0]])
    broken = table.copy()
    broken[0] = np.nan
    broken[2] = -np.inf
    assert usable(broken).tolist() == [False, True, False, True]
    found = calibration(np.stack([table, broken]), np.array([0, 1, 0, 0]))
    assert found is not None
    assert (found.used, found.left_out) == (2, 2)
    assert found.brier.value == pytest.approx((2 * 0.2**2 + 0) / 2)
    assert calibration(np.full((1, 3, 2), np.nan), np.zeros(3, dtype=np.int64)) is None


def test_the_same_data_always_gives_the_same_interval() -> None:
    table, gold = drawn(300, seed=6, sharpness=1.0)
    assert calibration(table[None], gold) == calibration(table[None], gold)


def test_a_cluster_is_needed_for_each_example() -> None:
    table, gold = drawn(10, seed=7, sharpness=1.0)
    with pytest.raises(ValueError, match="10 examples need as many clusters"):
        calibration(table[None], gold, np.zeros(9, dtype=np.int64))
