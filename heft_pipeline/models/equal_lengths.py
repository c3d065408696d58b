"""The forward pass for models that cannot be padded: each length by itself."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import pad

from heft_pipeline.data.batches import Batch, collate
from heft_pipeline.models.base_model import Base
from heft_pipeline.models.forward import Editing, ReadPrompts, Work, accepted_inputs
from heft_pipeline.models.vocabulary import projected_states


class EqualLengths:
    """Runs whole prompts in batches of equal length, without a mask or positions.

    A :class:`~heft_pipeline.models.forward.Forward` for models whose logits padding would change.

    Args:
        base: The model.
    """

    padding_costs = False

    def __init__(self, base: Base) -> None:
        self._base = base

    @property
    def no_cache(self) -> str:
        """Why the model's keys and values cannot be reused."""
        return self._base.no_padding

    def logits(self, batch: Batch, editing: Editing) -> torch.Tensor:
        """The logits that predict a batch's answers, [B, K, V]; zeros before shorter answers."""
        wanted = batch.answer_tokens
        run = lambda inputs: self._base.model(**inputs).logits[:, -wanted:]  # noqa: E731
        return self._each_length(batch, editing, wanted, run)

    def hidden(self, batch: Batch, editing: Editing) -> torch.Tensor:
        """What the projection reads at every position, [B, T, D]; zeros on padding."""
        run = lambda inputs: projected_states(self._base, inputs)  # noqa: E731
        return self._each_length(batch, editing, batch.input_ids.shape[1], run)

    def _each_length(
        self,
        batch: Batch,
        editing: Editing,
        width: int,
        run: Callable[[dict[str, Any]], torch.Tensor],
    ) -> torch.Tensor:
        """Run each length by itself, and put the results together, aligned right."""
        accepted = accepted_inputs(self._base.model)
        plain = {"logits_to_keep": batch.answer_tokens, "use_cache": False}
        wished = {k: v for k, v in plain.items() if k in accepted}
        found, order = [], []
        for rows in same_length([one.read_length for one in batch.sequences]):
            part = collate([batch.sequences[i] for i in rows], self._base.pad_token_id)
            part = part.to(batch.input_ids.device)
            with editing(part):
                own = run({"input_ids": part.input_ids} | wished)
            found.append(pad(own, (0, 0, width - own.shape[1], 0)))
            order += rows
        back = torch.tensor(order, device=batch.input_ids.device).argsort()
        return torch.cat(found)[back]

    def read(self, batch: Batch, editing: Editing) -> ReadPrompts | None:
        """Return None, because prompts of different lengths cannot share a cache."""
        return None

    def work(self, batch: Batch) -> Work:
        """Nothing is padded, so that a sequence costs the mean of the batch's lengths."""
        lengths = [one.read_length for one in batch.sequences]
        return Work(round(sum(lengths) / len(lengths)))


def same_length(lengths: list[int]) -> list[list[int]]:
    """The indices of equal lengths together, the longest first."""
    groups: dict[int, list[int]] = {length: [] for length in sorted(lengths, reverse=True)}
    for index, length in enumerate(lengths):
        groups[length].append(index)
    return list(groups.values())
