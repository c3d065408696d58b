"""How far the probabilities that a model gives to answer choices can be taken at their word."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heft_pipeline.evidence.resampling import (
    Floats,
    Integers,
    Measurement,
    basic_interval,
    group_numbers,
    resamples,
    summed,
)

BINS = 15
_SIMULATIONS = 200
_SEED = 0


@dataclass(frozen=True)
class Calibration:
    """How well calibrated one setting's seeds are; means over seeds.

    Attributes:
        error: The expected calibration error, from 0 (good) to 1, with its 95 % interval.
        error_by_chance: What a perfectly calibrated model with these confidences would show on
            so many examples, on average. The error is never 0 on finite data.
        brier: The Brier score, from 0 (good) to 2, with its 95 % interval.
        used: The number of examples that it is computed from.
        left_out: The examples that are left out because a seed has no usable log-probabilities
            for them; see :func:`usable`.
    """

    error: Measurement
    error_by_chance: float
    brier: Measurement
    used: int
    left_out: int


def choice_probabilities(log_probabilities: Floats) -> Floats:
    """Normalise log-probabilities over the choices.

    Args:
        log_probabilities: [..., C], each of a whole choice given the prompt.

    Returns:
        [..., C]; each row adds up to 1. A choice with -inf gets 0 if another one is finite.
    """
    highest = log_probabilities.max(axis=-1, keepdims=True)
    relative = np.exp(log_probabilities - highest)
    return np.asarray(relative / relative.sum(axis=-1, keepdims=True))


def usable(log_probabilities: Floats) -> NDArray[np.bool_]:
    """Which examples have probabilities: none of their values is NaN or inf, nor are all -inf.

    Args:
        log_probabilities: [..., C].

    Returns:
        [...].
    """
    wrong = np.isnan(log_probabilities) | np.isposinf(log_probabilities)
    return np.asarray(~wrong.any(axis=-1) & np.isfinite(log_probabilities).any(axis=-1))


def squared_errors(probabilities: Floats, gold: Integers) -> Floats:
    """Each example's part of the multi-class Brier score (Brier 1950).

    Args:
        probabilities: [..., N, C].
        gold: [N], the right choice.

    Returns:
        [..., N], the sum over choices of ``(p_c - 1[c is right])^2``, from 0 to 2.
    """
    right = np.arange(probabilities.shape[-1]) == gold[:, None]
    return np.asarray(((probabilities - right) ** 2).sum(axis=-1))


def confidences(probabilities: Floats, gold: Integers) -> tuple[Floats, Floats]:
    """The likeliest choice's probability, and how right that choice is.

    Args:
        probabilities: [..., N, C].
        gold: [N], the right choice.

    Returns:
        Twice [..., N]. Where n choices are exactly as likely and the right one is among them, the
        second is 1/n, as for accuracy.
    """
    confidence = probabilities.max(axis=-1)
    best = probabilities == confidence[..., None]
    right = (best & (np.arange(probabilities.shape[-1]) == gold[:, None])).any(axis=-1)
    return confidence, right / best.sum(axis=-1)


def expected_calibration_error(confidence: Floats, right: Floats, bins: int = BINS) -> float:
    """The expected calibration error of Guo et al. 2017 (arXiv 1706.04599, equation 3).

    Examples are put into bins of equal width by confidence. The error is the mean over examples of
    ``|accuracy - mean confidence|`` of their bins.

    Args:
        confidence: [N], the likeliest choice's probability.
        right: [N], from 0 to 1.
        bins: The number of bins; the paper uses 15.

    Returns:
        The error, from 0 to 1.
    """
    gaps = np.bincount(_bin(confidence, bins), weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def plain_scores(log_probabilities: Floats, gold: Integers) -> tuple[float, float] | None:
    """The expected calibration error and the Brier score of one seed, without intervals.

    Args:
        log_probabilities: [N, C], of each choice given the prompt.
        gold: [N], the right choice.

    Returns:
        (error, Brier score), from the usable examples; None if there are none.
    """
    kept = usable(log_probabilities)
    if not kept.any():
        return None
    probabilities = choice_probabilities(log_probabilities[kept])
    error = expected_calibration_error(*confidences(probabilities, gold[kept]))
    return error, float(squared_errors(probabilities, gold[kept]).mean())


def calibration(
    log_probabilities: Floats, gold: Integers, clusters: Integers | None = None
) -> Calibration | None:
    """Measure the calibration of a setting's seeds.

    Intervals come from resampling examples, or whole clusters of them, and seeds where there are
    several; see :func:`~heft_pipeline.evidence.resampling.resamples`.

    Args:
        log_probabilities: [S, N, C], of S seeds, N examples and C choices.
        gold: [N], the right choice.
        clusters: [N], equal for examples that belong together; None where none do.

    Returns:
        The calibration; None if no example is usable.
    """
    groups = group_numbers(len(gold), clusters)
    kept = usable(log_probabilities).all(axis=0)
    if not kept.any():
        return None
    table, gold = log_probabilities[:, kept], gold[kept]
    groups = group_numbers(len(gold), groups[kept])
    probabilities = choice_probabilities(table)
    confidence, right = confidences(probabilities, gold)
    squared = squared_errors(probabilities, gold)
    drawn = resamples(int(groups.max()) + 1, len(table))
    sizes = drawn.of_groups @ summed(np.ones(len(gold)), groups)  # [R]
    errors, briers = [], []
    for seed in range(len(table)):
        # One product for both, because reading all samples takes longer than multiplying them.
        parts = np.zeros((len(gold), BINS + 1))
        parts[np.arange(len(gold)), _bin(confidence[seed], BINS)] = right[seed] - confidence[seed]
        parts[:, BINS] = squared[seed]
        of_samples = drawn.of_groups @ summed(parts, groups)
        errors.append(np.abs(of_samples[:, :BINS]).sum(axis=1) / sizes)
        briers.append(of_samples[:, BINS] / sizes)
    weights = drawn.of_seeds / len(table)
    error = float(
        np.mean([expected_calibration_error(*o) for o in zip(confidence, right, strict=True)])
    )
    return Calibration(
        error=basic_interval(error, (weights * np.stack(errors, axis=1)).sum(axis=1), 0.0, 1.0),
        error_by_chance=_by_chance(confidence),
        brier=basic_interval(
            float(squared.mean()), (weights * np.stack(briers, axis=1)).sum(axis=1), 0.0, 2.0
        ),
        used=len(gold),
        left_out=int((~kept).sum()),
    )


def _by_chance(confidence: Floats) -> float:
    """The mean error over draws of answers that are right exactly as often as they are confident.

    This is the consistency resampling of Broecker and Smith 2007, Weather and Forecasting 22(3).
    """
    random = np.random.default_rng(_SEED)
    found = []
    for one in confidence:
        bins = np.eye(BINS)[_bin(one, BINS)]
        drawn = random.random((_SIMULATIONS, len(one))) < one
        found.append(np.abs((drawn - one) @ bins).sum(axis=1).mean() / len(one))
    return float(np.mean(found))


def _bin(confidence: Floats, bins: int) -> Integers:
    """The number of each confidence's bin; bin b holds those in (b / bins, (b + 1) / bins]."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
