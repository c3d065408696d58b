"""Simulated answers of methods whose true differences are known."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heft_pipeline.evidence.clusters import Clusters
from heft_pipeline.evidence.comparison import BOTH, EXAMPLES, SEEDS

Values = NDArray[np.float64]
#: Standard deviations on the logit scale: an example is easy or hard for all methods, and for each
#: by itself; so is a cluster for each; and what seed and example make together.
_EXAMPLE, _OWN, _CLUSTER, _CELL = 1.0, 0.6, 0.8, 0.5
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
#: The logit of the answer that a collapsed run always gives.
_CONSTANT = 4.0


@dataclass(frozen=True)
class Population:
    """What seeds and examples are drawn from.

    Attributes:
        examples: How many are drawn, or as many as the sizes of ``clusters`` add up to.
        largest: The size of the largest cluster; sizes are drawn from 1 to it. 1: no clusters.
        seed_effect: By how much seeds of a method differ: a standard deviation of the logit.
        gains: By how much each method's logit is above the base.
        base: The mean logit of the right answer.
        clusters: The sizes of all clusters, instead of ``largest``.
        harder: By how much an example's logit falls with each further example in its cluster.
        collapse: The probability with which a run of the first method always gives one answer.
    """

    examples: int = 600
    largest: int = 1
    seed_effect: float = 0.0
    gains: tuple[float, ...] = (0.0, 0.0)
    base: float = 0.8
    clusters: tuple[int, ...] = ()
    harder: float = 0.0
    collapse: float = 0.0

    def draw(
        self, random: np.random.Generator, seeds: int, effects: Values | None = None
    ) -> "Sample":
        """Draw the answers of all methods, each with so many seeds.

        The seeds' effects, [methods, seeds, 1], are drawn as well where none are given.
        """
        clusters = self._draw_clusters(random)
        count = self.examples if clusters is None else len(clusters)
        easy = random.normal(0, _EXAMPLE, size=(1, count))
        if clusters is not None and self.harder:
            sizes = np.bincount(clusters)
            easy = easy - self.harder * (sizes[clusters] - 1)
        of_examples, of_seeds = [], []
        for method, gain in enumerate(self.gains):
            own = random.normal(0, _OWN, size=(1, count))
            if clusters is not None:
                own += random.normal(0, _CLUSTER, size=(1, clusters.max() + 1))[:, clusters]
            of_examples.append(self.base + gain + easy + own)
            own_effects = random.normal(0, self.seed_effect, size=(seeds, 1))
            of_seeds.append(own_effects if effects is None else effects[method])
        shape = (len(self.gains), seeds, count)
        noise = random.normal(0, _CELL, size=shape) + random.logistic(size=shape)
        logits = np.stack(of_examples) + np.stack(of_seeds) + noise
        if self.collapse:
            gold = np.where(random.random(count) < 0.5, _CONSTANT, -_CONSTANT)
            logits[0, random.random(seeds) < self.collapse] = gold
        return Sample(self, logits, np.stack(of_examples), np.stack(of_seeds), clusters)

    def mean(self, method: int, by_logprob: bool = False) -> float:
        """A method's true mean over all seeds and examples."""
        spread = math.hypot(self._of_examples, _CELL, self.seed_effect)
        mean = float(_expected(np.array(self.base + self.gains[method]), spread, by_logprob))
        if self.collapse and not method:
            constant = -np.logaddexp(0, [-_CONSTANT, _CONSTANT]).mean() if by_logprob else 0.5
            mean += self.collapse * (constant - mean)
        return mean

    def difference(self, by_logprob: bool = False, other: int = 1) -> float:
        """The true difference of the first method to another."""
        return self.mean(0, by_logprob) - self.mean(other, by_logprob)

    @property
    def _of_examples(self) -> float:
        clustered = self.largest > 1 or self.clusters
        return math.hypot(_EXAMPLE, _OWN, _CLUSTER if clustered else 0.0)

    def _draw_clusters(self, random: np.random.Generator) -> Clusters | None:
        if self.clusters:
            return np.repeat(np.arange(len(self.clusters)), self.clusters)
        if self.largest == 1:
            return None
        sizes = random.integers(1, self.largest + 1, size=self.examples)
        return np.repeat(np.arange(self.examples), sizes)[: self.examples]


@dataclass(frozen=True)
class Sample:
    """What was drawn.

    Attributes:
        population: From what.
        logits: [methods, seeds, examples], of the right answer; above 0 it is given.
        of_examples: [methods, 1, examples], the logits' parts that all seeds share.
        of_seeds: [methods, seeds, 1], the parts that all examples share.
        clusters: The examples' clusters.
    """

    population: Population
    logits: Values
    of_examples: Values
    of_seeds: Values
    clusters: Clusters | None

    def values(self, method: int, by_logprob: bool = False) -> Values:
        """[seeds, examples], how right a method's answers are, or their log-probabilities."""
        logits = self.logits[method]
        return -np.logaddexp(0, -logits) if by_logprob else (logits > 0).astype(float)

    def differences(self, by_logprob: bool = False, pair: tuple[int, int] = (0, 1)) -> Values:
        """[seeds, examples], one method minus another."""
        return self.values(pair[0], by_logprob) - self.values(pair[1], by_logprob)

    def truth(self, scope: str = BOTH, by_logprob: bool = False) -> float:
        """The true difference of the first two methods: of all seeds and examples, or of these."""
        population = self.population
        if scope == BOTH:
            return population.difference(by_logprob)
        if scope == EXAMPLES:
            spread = math.hypot(population._of_examples, _CELL)
            gains = np.array(population.gains)[:, None, None]
            centres = population.base + gains + self.of_seeds
        else:
            assert scope == SEEDS
            spread, centres = math.hypot(_CELL, population.seed_effect), self.of_examples
        means = _expected(centres[:2], spread, by_logprob).mean(axis=(1, 2))
        return float(means[0] - means[1])


def _expected(centres: Values, spread: float, by_logprob: bool) -> Values:
    """The mean of accuracy, or of log-probability, over a normal logit with logistic noise."""
    logits = centres[..., None] + spread * _NODES
    with np.errstate(over="ignore", invalid="ignore"):
        if by_logprob:  # -log(1 + exp(-(x + noise))), integrated over the noise
            found = np.where(abs(logits) < 1e-6, -1.0, -logits / np.expm1(logits))
        else:
            found = 1 / (1 + np.exp(-logits))
    return np.asarray(found @ _WEIGHTS / _WEIGHTS.sum())
