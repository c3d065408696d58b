"""In a batch every sequence is what it is alone, whatever stands beside it."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from heft_pipeline.data.batches import (
    IGNORED_LABEL,
    AnsweredPrompt,
    collate,
    epoch_batches,
    length_batches,
    split_by_tokens,
)
from heft_pipeline.data.prompts import Example

PROPERTY = settings(deadline=None, derandomize=True, max_examples=200)
IDS = st.integers(0, 99)
SEQUENCE = st.builds(
    AnsweredPrompt,
    prompt=st.lists(IDS, min_size=1, max_size=12).map(tuple),
    answer=st.lists(IDS, min_size=1, max_size=4).map(tuple),
)
SEQUENCES = st.lists(SEQUENCE, min_size=1, max_size=8)
LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=80)


@PROPERTY
@given(sequences=SEQUENCES, pad=IDS, side=st.sampled_from(["left", "right"]))
def test_each_row_holds_its_sequence_and_masked_padding(
    sequences: list[AnsweredPrompt], pad: int, side: str
) -> None:
    batch = collate(sequences, pad, side)
    width = batch.input_ids.shape[1]
    for row, own in enumerate(sequences):
        tokens = own.prompt + own.answer[:-1]
        start = width - len(tokens) if side == "left" else 0
        columns = slice(start, start + len(tokens))
        assert tuple(batch.input_ids[row, columns].tolist()) == tokens
        assert batch.attention_mask[row].sum() == batch.attention_mask[row, columns].sum()
        assert batch.attention_mask[row, columns].all()
        assert batch.position_ids[row, columns].tolist() == list(range(len(tokens)))
        assert (batch.position_ids[row] >= 0).all()
        filler = np.delete(batch.input_ids[row].numpy(), np.r_[columns])
        assert (filler == pad).all()
        assert batch.prompt_start[row] == start
        assert batch.prompt_length[row] == batch.whole_length[row] == len(own.prompt)
        labels = batch.labels[row].tolist()
        assert tuple(labels[len(labels) - len(own.answer) :]) == own.answer
        assert set(labels[: len(labels) - len(own.answer)]) <= {IGNORED_LABEL}


def covered(batches: Sequence[Sequence[int]]) -> list[int]:
    return sorted(index for batch in batches for index in batch)


@PROPERTY
@given(
    lengths=LENGTHS,
    size=st.integers(1, 40),
    seed=st.integers(0, 2**31 - 1),
    epoch=st.integers(0, 5),
    grouped=st.booleans(),
)
def test_an_epoch_has_every_example_once_and_the_same_order_each_time(
    lengths: list[int], size: int, seed: int, epoch: int, grouped: bool
) -> None:
    examples = [Example(str(n), (1,) * length, 0, (1,)) for n, length in enumerate(lengths)]
    batches = epoch_batches(examples, size, seed, epoch, grouped)
    assert covered(batches) == list(range(len(lengths)))
    assert max(map(len, batches)) <= size
    assert batches == epoch_batches(examples, size, seed, epoch, grouped)


@PROPERTY
@given(lengths=LENGTHS, size=st.integers(1, 40), most=st.integers(1, 2000), similar=st.booleans())
def test_batches_of_similar_length_and_micro_batches_cover_all_within_their_limits(
    lengths: list[int], size: int, most: int, similar: bool
) -> None:
    batches = length_batches(lengths, size)
    assert covered(batches) == list(range(len(lengths)))
    assert max(map(len, batches)) <= size
    parts = split_by_tokens(lengths, most, similar=similar)
    assert [n for part in parts for n in range(len(lengths))[part]] == list(range(len(lengths)))
    for part in parts:
        own = lengths[part]
        assert len(own) == 1 or max(own) * len(own) <= most
