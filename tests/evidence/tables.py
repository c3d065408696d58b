"""Random tables of two methods' answers."""

import numpy as np
from numpy.typing import NDArray

from benchmarks.populations import Population
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

    A gain is on the scale of the logit, as are the seeds' effects.
    """
    population = Population(examples, seed_effect=seed_effect, gains=(gain, 0.0))
    return population.draw(random, seeds).differences(by_logprob)


def clusters_of(random: np.random.Generator, examples: int, largest: int) -> Clusters:
    """Clusters of 1 to ``largest`` examples."""
    sizes = random.integers(1, largest + 1, size=examples)
    return np.repeat(np.arange(examples), sizes)[:examples]
