"""The forward pass for models that cannot be padded: each length by itself."""

import torch
from torch.nn.functional import pad

from heft_pipeline.data.batches import AnsweredPrompt, Batch, collate
from heft_pipeline.models.base_model import Base
from heft_pipeline.models.forward import Editing, ReadPrompts, Work, accepted_inputs


class EqualLengths:
    """Runs whole prompts in batches of equal length, without a mask or positions.

    A :class:`~heft_pipeline.models.forward.Forward` for models whose logits padding would change.

    Args:
        base: The model.
    """

    def __init__(self, base: Base) -> None:
        self._base = base

    @property
    def no_cache(self) -> str:
        """Why the model's keys and values cannot be reused."""
        return self._base.no_padding

    def logits(self, batch: Batch, editing: Editing) -> torch.Tensor:
        """The logits that predict a batch's answers, [B, K, V]; zeros before shorter answers."""
        wanted = batch.answer_tokens
        accepted = accepted_inputs(self._base.model)
        plain = {"logits_to_keep": wanted, "use_cache": False}
        found, order = [], []
        for rows in same_length([_tokens(one) for one in batch.sequences]):
            part = collate([batch.sequences[i] for i in rows], self._base.pad_token_id)
            part = part.to(batch.input_ids.device)
            with editing(part):
                output = self._base.model(
                    input_ids=part.input_ids, **{k: v for k, v in plain.items() if k in accepted}
                )
            own = output.logits[:, -wanted:]
            found.append(pad(own, (0, 0, wanted - own.shape[1], 0)))
            order += rows
        back = torch.tensor(order, device=batch.input_ids.device).argsort()
        return torch.cat(found)[back]

    def read(self, batch: Batch, editing: Editing) -> ReadPrompts | None:
        """Return None, because prompts of different lengths cannot share a cache."""
        return None

    def work(self, batch: Batch) -> Work:
        """Nothing is padded, so that a sequence costs the mean of the batch's lengths."""
        lengths = [_tokens(one) for one in batch.sequences]
        return Work(round(sum(lengths) / len(lengths)))


def same_length(lengths: list[int]) -> list[list[int]]:
    """The indices of equal lengths together, the longest first."""
    groups: dict[int, list[int]] = {length: [] for length in sorted(lengths, reverse=True)}
    for index, length in enumerate(lengths):
        groups[length].append(index)
    return list(groups.values())


def _tokens(sequence: AnsweredPrompt) -> int:
    return len(sequence.prompt) + len(sequence.answer) - 1
