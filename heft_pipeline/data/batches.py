"""Batches of examples of similar length, in a seeded order, padded on the left."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from heft_pipeline.data.prompts import Example

#: How many batches' examples are sorted by length together; the order of groups stays random.
_BUCKET_BATCHES = 32
#: Once there are _FEW sequences together, one over _LONGER times the shortest is not added.
_FEW, _LONGER = 8, 1.1
IGNORED_LABEL = -100


@dataclass(frozen=True)
class AnsweredPrompt:
    """A prompt and the answer that follows it, as token ids.

    Attributes:
        prompt: The prompt, or its last part.
        answer: The answer.
        before: How many tokens of the prompt stand before that part.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    before: int = 0

    @property
    def whole_length(self) -> int:
        """The number of tokens of the whole prompt."""
        return self.before + len(self.prompt)

    @property
    def read_length(self) -> int:
        """The number of tokens that a model reads: all but the answer's last one."""
        return len(self.prompt) + len(self.answer) - 1


@dataclass(frozen=True)
class Batch:
    """Sequences padded on the left, so that all answers end in the last column.

    The input holds a prompt and all but the last token of its answer; the logits of the last
    ``answer_tokens`` columns predict the answer. There are B sequences of at most T input tokens
    and at most K answer tokens.

    Attributes:
        input_ids: [B, T] int64.
        attention_mask: [B, T] int64, 0 on padding.
        position_ids: [B, T] int64, counted from each prompt's first token.
        labels: [B, K] int64, the answers aligned right, with ``IGNORED_LABEL`` before shorter ones.
        prompt_start: [B] int64, the column of each prompt's first token.
        prompt_length: [B] int64, the number of tokens in each prompt.
        whole_length: [B] int64, the same with the tokens before a prompt's last part.
        sequences: The sequences in the rows.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    prompt_start: torch.Tensor
    prompt_length: torch.Tensor
    whole_length: torch.Tensor
    sequences: tuple[AnsweredPrompt, ...]

    @property
    def answer_tokens(self) -> int:
        """K, the most answer tokens of any sequence."""
        return self.labels.shape[1]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        tensors = {k: v for k, v in vars(self).items() if k != "sequences"}
        moved = {k: v.to(device, non_blocking=True) for k, v in tensors.items()}
        return Batch(**moved, sequences=self.sequences)


def collate(
    sequences: Sequence[AnsweredPrompt], pad_token_id: int, padding_side: str = "left"
) -> Batch:
    """Pad sequences into one batch.

    Args:
        sequences: Prompts with answers of one or more tokens.
        pad_token_id: The id that fills padding; any id will do, because padding is masked.
        padding_side: ``left``, or ``right``. With ``right`` the labels are not in the last columns,
            and only the hidden states and full logits are of use.
    """
    inputs = [s.prompt + s.answer[:-1] for s in sequences]
    width = max(map(len, inputs))
    answer = max(len(s.answer) for s in sequences)
    ids = np.full((len(inputs), width), pad_token_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    labels = np.full((len(inputs), answer), IGNORED_LABEL, dtype=np.int64)
    starts = np.zeros(len(inputs), dtype=np.int64)
    for row, (tokens, sequence) in enumerate(zip(inputs, sequences, strict=True)):
        starts[row] = width - len(tokens) if padding_side == "left" else 0
        ids[row, starts[row] : starts[row] + len(tokens)] = tokens
        mask[row, starts[row] : starts[row] + len(tokens)] = 1
        labels[row, answer - len(sequence.answer) :] = sequence.answer
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    return Batch(
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        position_ids=torch.from_numpy(positions),
        labels=torch.from_numpy(labels),
        prompt_start=torch.from_numpy(starts),
        prompt_length=torch.tensor([len(s.prompt) for s in sequences]),
        whole_length=torch.tensor([s.whole_length for s in sequences]),
        sequences=tuple(sequences),
    )


def epoch_batches(
    examples: Sequence[Example],
    batch_size: int,
    seed: int,
    epoch: int,
    group_by_length: bool = True,
    *,
    with_answers: bool = False,
) -> list[list[int]]:
    """The batches of one epoch, in an order fixed by seed and epoch.

    Examples are shuffled and cut into batches. To have similar lengths together, they are first cut
    into groups of ``32 x batch_size`` and sorted by length within each group, and the batches are
    shuffled again. Every example occurs once; only the last batch (of a group) is smaller.

    Args:
        examples: The training examples.
        batch_size: Examples per batch.
        seed: The run's seed.
        epoch: The epoch's number, from 0.
        group_by_length: Whether similar lengths are put together.
        with_answers: Whether a length is that of prompt and answer, which pays where answers
            differ much, or that of the prompt alone.

    Returns:
        Lists of indices into ``examples``.
    """
    random = np.random.default_rng([seed, 2, epoch])
    order = random.permutation(len(examples))
    if not group_by_length:
        return [order[i : i + batch_size].tolist() for i in range(0, len(examples), batch_size)]
    lengths = np.array([len(e.prompt) + with_answers * len(e.answer) for e in examples])
    batches: list[list[int]] = []
    for start in range(0, len(order), batch_size * _BUCKET_BATCHES):
        group = order[start : start + batch_size * _BUCKET_BATCHES]
        group = group[np.argsort(lengths[group], kind="stable")]
        batches.extend(group[i : i + batch_size].tolist() for i in range(0, len(group), batch_size))
    return [batches[i] for i in random.permutation(len(batches))]


def far_longer(length: int, shortest: int, count: int) -> bool:
    """Whether a sequence would make others of a batch cost far more, so that it starts a new one.

    Args:
        length: The sequence's tokens.
        shortest: Those of the batch's shortest sequence.
        count: How many sequences the batch has so far.
    """
    return count >= _FEW and length > _LONGER * shortest


def length_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Batches of similar length, to keep padding low.

    Args:
        lengths: The prompts' lengths in tokens.
        batch_size: The most prompts in a batch.

    Returns:
        Lists of indices into ``lengths``.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        batch = batches[-1] if batches else []
        padded = batch and far_longer(lengths[index], lengths[batch[0]], len(batch))
        if not batch or len(batch) >= batch_size or padded:
            batches.append([])
        batches[-1].append(index)
    return batches


def split_by_tokens(
    lengths: Sequence[int], max_tokens: int, *, similar: bool = False
) -> list[slice]:
    """Cut a batch into micro-batches with a limited number of padded tokens.

    Args:
        lengths: Token counts of the batch's sequences, in order.
        max_tokens: The most padded tokens (rows x longest row) in a micro-batch. A single longer
            sequence gets a micro-batch of its own.
        similar: Whether to cut also between lengths that differ much; see :func:`far_longer`.

    Returns:
        Consecutive slices that cover the batch.
    """
    slices, start, longest = [], 0, 0
    for i, length in enumerate(lengths):
        longest = max(longest, length)
        too_many = longest * (i - start + 1) > max_tokens
        if i > start and (too_many or (similar and far_longer(length, lengths[start], i - start))):
            slices.append(slice(start, i))
            start, longest = i, length
    return [*slices, slice(start, len(lengths))] if lengths else []
