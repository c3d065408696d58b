"""The forward and backward passes of one optimiser step, split into parts as memory requires."""

import logging
from collections.abc import Callable, Iterable, Sequence

import torch

from heft_pipeline.adapters.adapted import AdaptedModel
from heft_pipeline.data.batches import AnsweredPrompt, Batch, collate, split_by_tokens
from heft_pipeline.devices.memory import free, is_out_of_memory
from heft_pipeline.devices.random_state import load_random, random_tensors
from heft_pipeline.errors import UserError
from heft_pipeline.training.loss import Loss, backward

log = logging.getLogger(__name__)


def accumulate(
    model: AdaptedModel,
    sequences: Sequence[AnsweredPrompt],
    loss: Loss,
    most_tokens: int,
    parameters: Iterable[torch.nn.Parameter],
    count: Callable[[Batch], None],
    *,
    by_length: bool = False,
) -> tuple[torch.Tensor, int]:
    """Add up a batch's gradients; if memory runs out, try again in smaller parts.

    The gradients are those of the whole batch, however it is split.

    Args:
        model: The model, in training mode, without gradients.
        sequences: The batch, or this process's part of it.
        loss: The step's loss.
        most_tokens: The most padded tokens in a part; 0 for the whole batch at once.
        parameters: The trained parameters.
        count: Called with each part after all are done.
        by_length: Whether a batch of any lengths is run in parts of similar lengths.

    Returns:
        The loss, a scalar in nats; and ``most_tokens``, halved as often as memory ran out.

    Raises:
        UserError: Even a single sequence does not fit into memory.
    """
    trained = list(parameters)
    if by_length:
        sequences = sorted(sequences, key=lambda sequence: sequence.read_length)
    lengths = [sequence.read_length for sequence in sequences]
    device = model.base.device
    while True:
        before = random_tensors(device)
        limit = most_tokens or sum(lengths) * len(lengths)
        parts = split_by_tokens(lengths, limit, similar=by_length and model.forward.padding_costs)
        failure = ""
        try:
            total, batches = _passes(model, sequences, parts, loss)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failure = str(error).splitlines()[0]
        if not failure:
            for batch in batches:
                count(batch)
            return total, most_tokens
        # Outside of the handler, because the exception keeps the failed pass's tensors alive.
        for parameter in trained:
            parameter.grad = None
        load_random(before, device)
        free(device)
        most_tokens = _halved(lengths, parts, failure)
        log.warning(
            "out of memory (%s): at most %d tokens per pass from now on", failure, most_tokens
        )


def _passes(
    model: AdaptedModel,
    sequences: Sequence[AnsweredPrompt],
    parts: Sequence[slice],
    loss: Loss,
) -> tuple[torch.Tensor, list[Batch]]:
    device = model.base.device
    total = torch.zeros((), device=device)
    batches = []
    with model.between_steps():
        for part in parts:
            batch = collate(sequences[part], model.base.pad_token_id).to(device)
            total += backward(model, batch, loss)
            batches.append(batch)
    return total, batches


def _halved(lengths: Sequence[int], parts: Sequence[slice], failure: str) -> int:
    """Half the padded tokens of the largest part."""
    held = max((list(lengths[part]) for part in parts), key=lambda own: max(own) * len(own))
    if len(held) == 1:
        raise UserError(
            f"one sequence of {max(lengths)} tokens does not fit into memory ({failure}); use "
            "model.dtype=bfloat16, a smaller data.max_prompt_tokens, or another device"
        )
    return max(1, max(held) * len(held) // 2)
