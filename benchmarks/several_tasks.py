"""How often intervals over several tasks miss the truth: simulated, for a table of ``levels``."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.populations import Population, Sample
from heft_pipeline.evidence.comparison import ALPHA, EXAMPLES, SEEDS, compare
from heft_pipeline.evidence.intervals import accuracy_interval

_BASES = (0.8, 0.0, 2.0)


@dataclass(frozen=True)
class Tasks:
    """Several tasks, which the same seeds are trained on.

    Attributes:
        each: The tasks' populations, with equal effects of seeds.
        shared: Whether a seed that is lucky on one task is as lucky on all others.
    """

    each: tuple[Population, ...]
    shared: bool

    def draw(self, random: np.random.Generator, seeds: int) -> list[Sample]:
        """Draw the answers on all tasks."""
        effect, methods = self.each[0].seed_effect, len(self.each[0].gains)
        of_seeds = random.normal(0, effect, size=(methods, seeds, 1)) if self.shared else None
        return [population.draw(random, seeds, of_seeds) for population in self.each]


def tasks_of(
    sizes: tuple[int, ...], seed_effect: float, shared: bool, largest: int = 1, easy: float = 0.0
) -> Tasks:
    """Tasks of given sizes, each of another difficulty.

    Args:
        sizes: The number of each task's examples.
        seed_effect: By how much seeds differ, on the logit scale.
        shared: Whether a seed's effect is the same on all tasks.
        largest: The size of the largest cluster of examples.
        easy: By how much the tasks are easier than usual, on the logit scale.
    """
    return Tasks(
        tuple(
            Population(size, largest, seed_effect, (0.3 * (number == 1), 0.0), base=base + easy)
            for number, (size, base) in enumerate(zip(sizes, _BASES, strict=False))
        ),
        shared,
    )


def tasks_trial(
    tasks: Tasks, seeds: int, alpha: float = ALPHA
) -> Callable[[np.random.Generator], list[float]]:
    """What a trial misses: the truth by accuracy, by log-probability, in each scope, and of one."""
    truth, of_logprob, accuracy = (
        float(np.mean(values))
        for values in (
            [one.difference() for one in tasks.each],
            [one.difference(by_logprob=True) for one in tasks.each],
            [one.mean(0) for one in tasks.each],
        )
    )

    def trial(random: np.random.Generator) -> list[float]:
        samples = tasks.draw(random, seeds)
        counts = [sample.logits.shape[2] for sample in samples]
        strata = np.repeat(np.arange(len(counts)), counts)
        clusters = None
        if samples[0].clusters is not None:
            pairs = np.concatenate([s.clusters for s in samples])
            clusters = np.unique(np.stack([strata, pairs]), axis=1, return_inverse=True)[1].reshape(
                -1
            )
        credit = np.concatenate([sample.differences() for sample in samples], axis=1)
        logprob = np.concatenate([sample.differences(True) for sample in samples], axis=1)
        right = np.concatenate([sample.values(0) for sample in samples], axis=1)

        def misses(values: np.ndarray, wanted: float, **how: object) -> bool:
            found = compare(values, clusters=clusters, strata=strata, **how)  # type: ignore[arg-type]
            low, high = found.estimate.interval(alpha)
            return not low <= wanted <= high

        scoped = [
            misses(credit, float(np.mean([s.truth(scope) for s in samples])), scope=scope)
            for scope in ((SEEDS, EXAMPLES) if seeds > 1 else (EXAMPLES, EXAMPLES))
        ]
        low, high = accuracy_interval(right, clusters, 1 - alpha, strata)
        return [
            misses(credit, truth),
            misses(logprob, of_logprob, accuracy=False),
            *scoped,
            not low <= accuracy <= high,
        ]

    return trial
