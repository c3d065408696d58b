"""Examples that share something, such as a passage, and so are not independent."""

import numpy as np
from numpy.typing import NDArray

#: [examples], the number of each example's cluster: 0, 1, ... without gaps. None: each example
#: is a cluster of its own.
Clusters = NDArray[np.int64]


def by_cluster(cells: NDArray[np.float64], clusters: Clusters | None) -> NDArray[np.float64]:
    """One value for each seed and cluster, whose mean is the mean over examples.

    Clusters differ in size, and so the mean over examples is a ratio: of the clusters' sums to
    their sizes. It is linearised (the first term of Taylor's series, as in cluster-robust
    errors; Miller 2024, arXiv 2411.00640, section 2.2): a cluster of n examples contributes the
    mean plus its own deviation from it, weighted by n over the clusters' mean size.

    Args:
        cells: [seeds, examples].
        clusters: The examples' clusters.

    Returns:
        [seeds, clusters]; ``cells`` itself without clusters.
    """
    if clusters is None:
        return cells
    mean = cells.mean()
    sizes = np.bincount(clusters)
    sums = np.stack([np.bincount(clusters, weights=row) for row in cells])
    return np.asarray(mean + (sums - sizes * mean) / sizes.mean())


def evenness(clusters: Clusters | None) -> float:
    """How much clusters of different sizes are worth: 1 where all have one size.

    It is the effective number of clusters as a share of their number, and stands for the degrees
    of freedom that a variance between them has: one cluster with half of the examples makes half
    of that variance, however many others there are (Carter, Schnepel and Steigerwald 2017, Review
    of Economics and Statistics 99, 698-709; with independent examples within a cluster it is
    Kish's number, the square of the sizes' sum over the sum of their squares).

    Args:
        clusters: The examples' clusters.
    """
    if clusters is None:
        return 1.0
    sizes = np.bincount(clusters).astype(float)
    return float(sizes.sum() ** 2 / (sizes**2).sum() / len(sizes))


def numbered(names: list[str]) -> Clusters | None:
    """Number clusters.

    Args:
        names: Each example's cluster, by any name.

    Returns:
        Their numbers; None where every example has a cluster of its own.
    """
    found, numbers = np.unique(np.array(names, dtype=object).astype(str), return_inverse=True)
    return None if len(found) == len(names) else numbers.astype(np.int64)
