"""How often seeds of one setting give the same answer to the same question."""

from dataclasses import dataclass

import numpy as np

from heft_pipeline.evidence.resampling import (
    Floats,
    Integers,
    Measurement,
    basic_interval,
    group_numbers,
    resamples,
    summed,
)


@dataclass(frozen=True)
class Agreement:
    """The agreement of several seeds' predictions.

    Attributes:
        share: The mean, over pairs of seeds, of the share of examples with the same prediction,
            with its 95 % interval over examples.
        kappa: Fleiss' kappa (1971): the same, corrected for the agreement that is due to how often
            each answer is given. 1 is full agreement, 0 what chance gives. NaN, like its interval,
            where all predictions are the same, so that chance alone gives full agreement.
    """

    share: Measurement
    kappa: Measurement


def agreement(predictions: Integers, clusters: Integers | None = None) -> Agreement | None:
    """Compare the predictions of several seeds.

    The intervals are over examples, or whole clusters of them, for these seeds.

    Args:
        predictions: [S, N], the number of the predicted choice; -1, no choice, counts as a choice
            of its own.
        clusters: [N], equal for examples that belong together; None where none do.

    Returns:
        The agreement; None for fewer than two seeds.
    """
    seeds, examples = predictions.shape
    if seeds < 2 or not examples:
        return None
    groups = group_numbers(examples, clusters)
    counts = np.stack([(predictions == one).sum(axis=0) for one in np.unique(predictions)], axis=1)
    same = (counts * (counts - 1)).sum(axis=1) / (seeds * (seeds - 1))
    drawn = resamples(int(groups.max()) + 1, 1).of_groups
    sizes = drawn @ summed(np.ones(examples), groups)
    resampled = drawn @ summed(same, groups) / sizes
    answered = drawn @ summed(counts.astype(float), groups) / (seeds * sizes[:, None])
    share = float(same.mean())
    return Agreement(
        share=basic_interval(share, resampled, 0.0, 1.0),
        kappa=basic_interval(
            float(_kappa(np.array([share]), counts.mean(axis=0)[None] / seeds)[0]),
            _kappa(resampled, answered),
            -1.0,
            1.0,
        ),
    )


def _kappa(share: Floats, answered: Floats) -> Floats:
    """Fleiss' kappa from [R] agreements and [R, A] shares of answers; NaN where chance gives 1."""
    chance = (answered**2).sum(axis=1)
    room = np.where(chance < 1 - 1e-12, 1 - chance, np.nan)
    return np.asarray((share - chance) / room)
