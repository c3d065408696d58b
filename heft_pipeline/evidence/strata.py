"""Means over several tasks, whose examples are strata: each sampled by itself.

What is estimated is the unweighted mean, over the tasks, of each task's own mean: a task counts as
much as any other, however many examples it has. Examples, or clusters of them, are random samples
within their task. The tasks are fixed, and nothing is said of others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heft_pipeline.evidence.clusters import Clusters, by_cluster, evenness

#: [examples], the number of each example's task: 0, 1, ... without gaps. None: all are of one.
#: A cluster of examples never spans tasks.
Strata = NDArray[np.int64]


@dataclass(frozen=True)
class Stratum:
    """The values of one task's examples.

    Attributes:
        values: [seeds, examples].
        clusters: The examples' clusters, numbered within the task; None where they are
            independent.
        cells: [seeds, clusters], from :func:`~heft_pipeline.evidence.clusters.by_cluster`.
        evenness: What clusters of different sizes are worth, as a share of their number.
    """

    values: NDArray[np.float64]
    clusters: Clusters | None
    cells: NDArray[np.float64]
    evenness: float

    @property
    def count(self) -> int:
        """The number of its clusters, or of its examples where they are independent."""
        return self.cells.shape[1]


def stratified(
    values: NDArray[np.float64], clusters: Clusters | None, strata: Strata | None
) -> tuple[Stratum, ...]:
    """Divide a table by task.

    Args:
        values: [seeds, examples].
        clusters: The examples' clusters; None where they are independent.
        strata: The examples' tasks; None for one.

    Returns:
        A stratum for each task, in the order of their numbers.

    Raises:
        ValueError: A cluster has examples of several tasks.
    """
    if strata is None or not strata.any():
        return (Stratum(values, clusters, by_cluster(values, clusters), evenness(clusters)),)
    if clusters is not None:
        pairs = np.unique(np.stack([clusters, strata]), axis=1)
        if pairs.shape[1] > len(np.unique(clusters)):
            raise ValueError("a cluster has examples of several tasks")
    found = []
    for number in range(int(strata.max()) + 1):
        of_task = strata == number
        own = None if clusters is None else np.unique(clusters[of_task], return_inverse=True)[1]
        cells = by_cluster(values[:, of_task], own)
        found.append(Stratum(values[:, of_task], own, cells, evenness(own)))
    return tuple(found)


def seed_means(strata: Sequence[Stratum]) -> NDArray[np.float64]:
    """[seeds], each seed's mean over the tasks of its means on them."""
    return np.asarray(np.mean([one.cells.mean(axis=1) for one in strata], axis=0))


def overall_mean(strata: Sequence[Stratum]) -> float:
    """The mean over tasks of their means."""
    return float(np.mean([one.cells.mean() for one in strata]))


def example_deviations(strata: Sequence[Stratum]) -> NDArray[np.float64]:
    """[clusters of all tasks], by how much each moves the overall mean, times their number.

    A cluster's deviation is from its task's mean, and counts the more the fewer its task has.
    """
    each = sum(one.count for one in strata) / len(strata)
    return np.concatenate(
        [(one.cells.mean(axis=0) - one.cells.mean()) * (each / one.count) for one in strata]
    )


def variance_of_examples(
    strata: Sequence[Stratum], least: Sequence[float] | None = None
) -> tuple[float, float]:
    """How much the overall mean would vary with other examples of the same tasks.

    It is that of a stratified mean (Cochran 1977, Sampling Techniques, section 5.4), with the
    degrees of freedom of Satterthwaite (1946) over the strata.

    Args:
        strata: The tasks.
        least: What the variance of each task's mean is kept from falling below; without effect
            on a single task.

    Returns:
        The variance, and the degrees of freedom: 0 where a task has only one cluster, which does
        not show how its examples differ.
    """
    parts, freedoms = np.empty(len(strata)), np.empty(len(strata))
    for row, one in enumerate(strata):
        parts[row] = one.cells.mean(axis=0).var(ddof=1) / one.count if one.count > 1 else 0.0
        freedoms[row] = one.evenness * one.count - 1
    if len(strata) == 1:
        return float(parts[0]), float(freedoms[0])
    parts = np.maximum(parts, 0.0 if least is None else least) / len(strata) ** 2
    if min(one.count for one in strata) < 2:
        return float(parts.sum()), 0.0
    if not parts.any():
        return 0.0, float(freedoms.min())
    return float(parts.sum()), float(parts.sum() ** 2 / (parts**2 / freedoms).sum())
