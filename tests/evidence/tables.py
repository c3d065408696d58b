"""Random tables of two methods' answers."""

import numpy as np
from numpy.typing import NDArray

from heft_pipeline.evidence.clusters import Clusters

Table = NDArray[np.float64]


def differences(
    random: np.random.Generator,
    seeds: int,
    examples: int,
    *,
    seed_effect: float = 0.0,
    gain: float = 0.0,
    by_logprob: bool = False,
) -> Table:
    """[seeds, examples], the difference of two methods: of right answers, or of nats.

    An example is easy or hard for both methods, and for each by itself. A gain is on the scale of
    the logit, as are the seeds' effects.
    """
    easy = random.normal(0, 1.0, size=(1, examples))
    sides = []
    for better in (gain, 0.0):
        own = random.normal(0, 0.6, size=(1, examples))
        cells = random.normal(0, 0.5, size=(seeds, examples))
        of_seed = random.normal(0, seed_effect, size=(seeds, 1)) if seed_effect else 0.0
        logit = 0.8 + better + easy + own + cells + of_seed + random.logistic(size=cells.shape)
        sides.append(-np.logaddexp(0, -logit) if by_logprob else (logit > 0).astype(float))
    return np.asarray(sides[0] - sides[1])


def clusters_of(random: np.random.Generator, examples: int, largest: int) -> Clusters:
    """Clusters of 1 to ``largest`` examples."""
    sizes = random.integers(1, largest + 1, size=examples)
    return np.repeat(np.arange(examples), sizes)[:examples]
