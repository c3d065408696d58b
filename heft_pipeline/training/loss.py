"""The loss of a batch and its gradients: of the answers, or of whole sequences in chunks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from heft_pipeline.adapters.adapted import AdaptedModel
from heft_pipeline.data.batches import IGNORED_LABEL, AnsweredPrompt, Batch

#: The most logits that are computed at once, which are 256 MiB in float32.
_LOGITS = 2**26
#: The same on a CPU: 32 MiB, which malloc reuses instead of asking for fresh pages each time.
_CPU_LOGITS = 2**23


@dataclass(frozen=True)
class Loss:
    """The loss of an optimiser step: the mean cross-entropy of tokens.

    Attributes:
        kind: ``answer`` for the answers' tokens, or ``sequence`` for all but each sequence's first.
        tokens: How many tokens of that kind the whole step has.
    """

    kind: str
    tokens: int


def step_loss(kind: str, sequences: Sequence[AnsweredPrompt]) -> Loss:
    """The loss of an optimiser step over sequences."""
    answers = sum(len(sequence.answer) for sequence in sequences)
    prompts = sum(len(sequence.prompt) - 1 for sequence in sequences)
    return Loss(kind, answers if kind == "answer" else prompts + answers)


def backward(model: AdaptedModel, batch: Batch, loss: Loss) -> torch.Tensor:
    """Add a batch's gradients to those of the trained parameters.

    Args:
        model: The model, in training mode.
        batch: A part of the step's sequences.
        loss: The step's loss.

    Returns:
        The batch's part of it, a scalar in nats without a gradient.
    """
    if loss.kind == "sequence":
        return _sequence_backward(model, batch, loss.tokens)
    total = answer_loss(model.logits(batch), batch) / loss.tokens
    total.backward()
    return total.detach()


def answer_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The summed cross-entropy of a batch's answer tokens.

    Args:
        logits: [B, K, V].
        batch: The batch, with labels [B, K].

    Returns:
        A scalar in nats, computed in float32.
    """
    return cross_entropy(
        logits.float().flatten(0, 1),
        batch.labels.flatten(),
        ignore_index=IGNORED_LABEL,
        reduction="sum",
    )


def _sequence_backward(model: AdaptedModel, batch: Batch, divisor: int) -> torch.Tensor:
    """The loss of every token but the first; only one chunk's logits are in memory at a time."""
    labels = sequence_labels(batch)
    predicting = labels != IGNORED_LABEL
    hidden, labels = model.hidden(batch)[predicting], labels[predicting]
    # The gradients of the hidden states are added up chunk by chunk, and then sent on at once.
    leaf = hidden.detach().requires_grad_()
    vocabulary = model.base.model.config.get_text_config().vocab_size
    positions = chunk_positions(vocabulary, on_cpu=hidden.device.type == "cpu")
    total = torch.zeros((), device=hidden.device)
    for states, wanted in zip(leaf.split(positions), labels.split(positions), strict=True):
        logits = model.vocabulary.logits(states).float()
        part = cross_entropy(logits, wanted, reduction="sum") / divisor
        part.backward()
        total += part.detach()
    if hidden.requires_grad:
        hidden.backward(leaf.grad)
    return total


def chunk_positions(vocabulary: int, *, on_cpu: bool = False) -> int:
    """How many positions' logits are computed at once with ``loss=sequence``."""
    return max(1, (_CPU_LOGITS if on_cpu else _LOGITS) // vocabulary)


def sequence_labels(batch: Batch) -> torch.Tensor:
    """The token that each position of a batch predicts.

    Args:
        batch: B sequences of at most T input tokens, padded on the left.

    Returns:
        [B, T] int64, with ``IGNORED_LABEL`` on padding.
    """
    following = torch.cat([batch.input_ids[:, 1:], batch.labels[:, -1:]], dim=1)
    return following.masked_fill(batch.attention_mask == 0, IGNORED_LABEL)
