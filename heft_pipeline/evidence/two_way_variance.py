"""The two-way random-effects analysis of a table of seeds and examples."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: [seeds, examples]: 1 or true for each right answer, 0 for each wrong one, 1/n where n choices
#: were exactly equal and the right one was among them. Every row has the same examples.
Right = NDArray[np.bool_] | NDArray[np.float64]


@dataclass(frozen=True)
class TwoWay:
    """The mean of a table and how uncertain it is, where seeds and examples are both samples.

    Attributes:
        mean: The mean of all cells.
        variance: The variance of that mean.
        freedom: The degrees of freedom of that variance.
        of_seeds: The variance component of the seeds.
        of_examples: The variance component of the examples.
        of_cells: The variance that neither explains.
    """

    mean: float
    variance: float
    freedom: float
    of_seeds: float
    of_examples: float
    of_cells: float


def two_way(cells: NDArray[np.float64]) -> TwoWay:
    """Analyse a table as crossed random effects.

    The degrees of freedom are Satterthwaite's, as in Clark's (1973) quasi-F.

    Args:
        cells: [seeds, examples], at least 2 seeds.

    Returns:
        The mean with its variance and the variance's components.
    """
    seeds, examples = cells.shape
    mean = cells.mean()
    by_seed, by_example = cells.mean(axis=1), cells.mean(axis=0)
    rest = cells - by_seed[:, None] - by_example[None, :] + mean
    of_seeds = examples * ((by_seed - mean) ** 2).sum() / (seeds - 1)
    of_examples = seeds * ((by_example - mean) ** 2).sum() / max(1, examples - 1)
    freedom_of_rest = max(1, (seeds - 1) * (examples - 1))
    of_rest = (rest**2).sum() / freedom_of_rest
    # The variance of the mean follows from the expected mean squares. An estimate below either
    # of the first two would imply a negative variance component.
    total = max(of_seeds + of_examples - of_rest, of_seeds, of_examples)
    spread = (
        of_seeds**2 / (seeds - 1)
        + of_examples**2 / max(1, examples - 1)
        + of_rest**2 / freedom_of_rest
    )
    return TwoWay(
        mean=float(mean),
        variance=float(total / (seeds * examples)),
        # Satterthwaite's value falls below 1 where the mean squares almost cancel; no variance
        # has fewer than 1.
        freedom=max(1.0, float(total**2 / spread)) if spread else float(seeds - 1),
        of_seeds=float(max(0.0, (of_seeds - of_rest) / examples)),
        of_examples=float(max(0.0, (of_examples - of_rest) / seeds)),
        of_cells=float(of_rest),
    )
