"""From hidden states to logits, at positions of the caller's choice.

A model's own forward pass projects whole sequences onto the vocabulary, which takes far more memory
than anything else in it. Here the pass ends before the projection, and the projection runs on as
many positions as there is room for.
"""

from functools import cached_property
from typing import Any

import torch

from heft_pipeline.devices.random_state import load_random, random_tensors
from heft_pipeline.errors import UserError
from heft_pipeline.models.base_model import Base


class Vocabulary:
    """The part of a model that turns hidden states into logits.

    Args:
        base: The model, with its adapters on it.
    """

    def __init__(self, base: Base) -> None:
        self._base = base

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The logits of hidden states, as the model itself computes them.

        Args:
            hidden: [N, D], from :func:`projected_states`.

        Returns:
            [N, V] in the model's dtype.
        """
        if self._plain:
            logits: torch.Tensor = projection(self._base)(hidden)
            return logits
        return self._through_model(hidden)

    @cached_property
    def _plain(self) -> bool:
        """Whether the projection's output is the logits; some models scale or cap it."""
        device = self._base.device
        ids = torch.full((1, 2), self._base.pad_token_id, device=device)
        # Dropout may draw numbers here, and a resumed stage comes here at another step.
        random = random_tensors(device)
        with torch.no_grad():
            hidden = projected_states(self._base, {"input_ids": ids})[0]
            plain = torch.equal(projection(self._base)(hidden), self._through_model(hidden))
        load_random(random, device)
        return plain

    def _through_model(self, hidden: torch.Tensor) -> torch.Tensor:
        """Run the model on one token, with other hidden states put in before the projection."""
        head = projection(self._base)
        own, project = vars(head).get("forward"), head.forward
        head.forward = lambda _: project(hidden[None])
        try:
            ids = torch.full((1, 1), self._base.pad_token_id, device=self._base.device)
            logits: torch.Tensor = self._base.model(input_ids=ids).logits[0]
        finally:
            del head.forward
            if own is not None:
                head.forward = own
        return logits


def projection(base: Base) -> Any:
    """The module that projects hidden states onto the vocabulary.

    Raises:
        UserError: The model does not say which it is.
    """
    head = base.model.get_output_embeddings()
    if head is None:
        raise UserError(
            f"loss=sequence: transformers does not say which module of {type(base.model).__name__} "
            "projects onto the vocabulary; use loss=answer"
        )
    return head


def projected_states(base: Base, inputs: dict[str, Any]) -> torch.Tensor:
    """Run a model up to its projection.

    Args:
        base: The model.
        inputs: The keyword arguments of its forward pass, for B sequences of T tokens.

    Returns:
        [B, T, D], what the projection reads at every position.
    """
    if "logits_to_keep" in inputs:
        inputs = inputs | {"logits_to_keep": 0}  # all

    def stop(_module: Any, given: tuple[torch.Tensor, ...]) -> None:
        raise _Reached(given[0])

    handle = projection(base).register_forward_pre_hook(stop)
    try:
        base.model(**inputs)
    except _Reached as reached:
        return reached.hidden
    finally:
        handle.remove()
    raise RuntimeError(f"{type(base.model).__name__} did not run its projection")


class _Reached(Exception):
    """Ends a forward pass at the projection."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden
