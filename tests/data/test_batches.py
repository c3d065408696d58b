"""Batches: every example once, similar lengths together, an order fixed by the seed."""

import random

import pytest
import torch

from heft_pipeline.adapters.reft.positions import prompt_positions
from heft_pipeline.data.batches import (
    IGNORED_LABEL,
    AnsweredPrompt,
    collate,
    epoch_batches,
    split_by_tokens,
)
from heft_pipeline.data.prompts import Example


def examples(count: int) -> list[Example]:
    source = random.Random(0)
    return [Example(str(i), tuple(range(source.randint(5, 200))), 0) for i in range(count)]


def test_each_example_occurs_once_an_epoch() -> None:
    for count in (1, 7, 32, 1000):
        batches = epoch_batches(examples(count), 16, seed=0, epoch=0)
        assert sorted(i for batch in batches for i in batch) == list(range(count))
        assert all(len(batch) <= 16 for batch in batches)


def test_the_order_is_fixed_by_seed_and_epoch() -> None:
    rows = examples(300)
    first = epoch_batches(rows, 16, seed=0, epoch=0)
    assert epoch_batches(rows, 16, seed=0, epoch=0) == first
    assert epoch_batches(rows, 16, seed=1, epoch=0) != first
    assert epoch_batches(rows, 16, seed=0, epoch=1) != first


def test_buckets_save_most_of_the_padding() -> None:
    rows = examples(1000)
    real = sum(len(e.prompt) for e in rows)

    def padded(batches: list[list[int]]) -> int:
        return sum(len(b) * max(len(rows[i].prompt) for i in b) for b in batches)

    bucketed = padded(epoch_batches(rows, 16, seed=0, epoch=0))
    shuffled = list(range(1000))
    random.Random(0).shuffle(shuffled)
    plain = padded([shuffled[i : i + 16] for i in range(0, 1000, 16)])
    assert bucketed - real < 0.2 * (plain - real)


def test_batches_are_not_in_order_of_length() -> None:
    rows = examples(1000)
    longest = [max(len(rows[i].prompt) for i in b) for b in epoch_batches(rows, 16, 0, 0)]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))


def test_answers_end_in_the_last_column_and_positions_count_from_the_prompt() -> None:
    sequences = [AnsweredPrompt((5, 6, 7), (8,)), AnsweredPrompt((1, 2, 3, 4), (9, 10, 11))]
    batch = collate(sequences, pad_token_id=0)
    assert batch.input_ids.tolist() == [[0, 0, 0, 5, 6, 7], [1, 2, 3, 4, 9, 10]]
    assert batch.attention_mask.tolist() == [[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]]
    assert batch.position_ids.tolist() == [[0, 0, 0, 0, 1, 2], [0, 1, 2, 3, 4, 5]]
    assert batch.labels.tolist() == [[IGNORED_LABEL, IGNORED_LABEL, 8], [9, 10, 11]]
    assert prompt_positions(batch, "f1+l2", "both").tolist() == [[3, 6, 5], [0, 2, 3]]
    assert prompt_positions(batch, "f2+l1", "first").tolist() == [[3, 6], [0, 1]]
    right = collate(sequences, pad_token_id=0, padding_side="right")
    assert right.input_ids.tolist() == [[5, 6, 7, 0, 0, 0], [1, 2, 3, 4, 9, 10]]
    assert prompt_positions(right, "l2", "both").tolist() == [[6, 2], [2, 3]]
    assert right.to(torch.device("cpu")).prompt_start.tolist() == [0, 0]


@pytest.mark.parametrize("positions", ["f7+l7", "f3", "l7", "f1+l4"])
def test_a_prompt_has_the_positions_that_pyreft_gives_it(positions: str) -> None:
    from pyreft.dataset import get_intervention_locations

    sequences = [AnsweredPrompt(tuple(range(n)), (1,)) for n in range(1, 20)]
    batch = collate(sequences, pad_token_id=0)
    columns = prompt_positions(batch, positions, "both")
    found = (columns - batch.prompt_start[:, None]).masked_fill(columns == 19, -1)
    for row, sequence in zip(found.tolist(), sequences, strict=True):
        (theirs,) = get_intervention_locations(
            last_position=len(sequence.prompt),
            positions=positions,
            num_interventions=1,
            share_weights=True,
        )
        assert sorted(row) == sorted(theirs)


def test_micro_batches_hold_at_most_the_asked_tokens() -> None:
    lengths = [10, 10, 50, 3, 3, 3, 400, 5]
    parts = split_by_tokens(lengths, 100)
    assert [i for part in parts for i in range(*part.indices(8))] == list(range(8))
    for part in parts:
        held = lengths[part]
        assert len(held) == 1 or max(held) * len(held) <= 100
    assert split_by_tokens(lengths, 10_000) == [slice(0, 8)]
    assert split_by_tokens([], 10) == []
