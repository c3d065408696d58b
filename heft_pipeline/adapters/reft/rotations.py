"""ReFT's orthonormal projections R, computed for all layers at once between two optimiser steps."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.utils import parametrize


@contextmanager
def computed_once(interventions: Sequence[Any]) -> Iterator[None]:
    """Compute the projections R of all interventions once for the forward passes inside the block.

    pyreft computes ``R = orthogonalise(...)`` each time it uses R, twice in each layer and pass.
    Here, one batched product of Householder reflections computes all of them. It uses the compact
    WY form (Joffrain et al. 2006), which equals torch's own parametrisation up to rounding. Inside
    the block, gradients accumulate at R; on exit, one backward pass carries them to the parameters.

    Args:
        interventions: pyreft's interventions.
    """
    rotated = [i.rotate_layer for i in interventions if hasattr(i, "rotate_layer")]
    rotated = [r for r in rotated if hasattr(r, "parametrizations") and _is_householder(r)]
    with parametrize.cached():
        if not rotated:
            yield
            return
        weights = _orthogonal([r.parametrizations.weight for r in rotated])
        grad = weights.requires_grad and torch.is_grad_enabled()
        leaves = [w.detach().requires_grad_(grad) for w in weights]
        for rotate, leaf in zip(rotated, leaves, strict=True):
            # What the first use of R would put there.
            parametrize._cache[(id(rotate), "weight")] = leaf
        yield
    if grad and leaves[0].grad is not None:
        weights.backward(torch.stack([leaf.grad for leaf in leaves]))


def _is_householder(rotate: Any) -> bool:
    """Whether torch uses Householder reflections; for a square R it uses the matrix exponential."""
    hidden, rank = rotate.parametrizations.weight.original.shape
    parametrization = rotate.parametrizations.weight[0]
    return rank < hidden and parametrization.orthogonal_map.name == "householder"


def _orthogonal(parametrized: Sequence[Any]) -> torch.Tensor:
    """[units, hidden, rank]: torch's Householder parametrisation of each weight."""
    raw = torch.stack([p.original for p in parametrized])
    base = torch.stack([p[0].base for p in parametrized])
    rank = raw.shape[-1]
    unit = torch.eye(raw.shape[1], rank, dtype=raw.dtype, device=raw.device)
    vectors = raw.tril(-1) + unit
    inverse = (vectors.mT @ vectors).triu(1) + torch.diag_embed((vectors**2).sum(dim=-2) / 2)
    # Q = E - V T V' E, for the first rank columns E of the identity.
    inner = torch.linalg.solve_triangular(inverse, vectors[:, :rank].mT, upper=True)
    signs = raw.diagonal(dim1=-2, dim2=-1).int().unsqueeze(-2)
    return base @ ((unit - vectors @ inner) * signs)
