"""Edited positions are inside the prompt, and a batch edits each prompt as it is edited alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heft_pipeline.adapters.adapted import AdaptedModel, adapted
from heft_pipeline.adapters.reft.positions import position_names, prompt_positions
from heft_pipeline.adapters.reft.settings import parse_positions, tokens_needed
from heft_pipeline.data.batches import AnsweredPrompt, collate
from heft_pipeline.models.base_model import Base, load_base
from tests.conftest import composed_run

PROPERTY = settings(deadline=None, derandomize=True, max_examples=200)
IDS = st.integers(3, 60)
PROMPTS = st.lists(
    st.lists(IDS, min_size=1, max_size=20).map(tuple), min_size=1, max_size=6
)  # fmt: skip
COUNTS = st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(any)


def written(counts: tuple[int, int]) -> str:
    first, last = counts
    return "+".join([f"f{first}"] * bool(first) + [f"l{last}"] * bool(last))


@PROPERTY
@given(counts=COUNTS)
def test_a_position_string_is_read_as_it_is_written(counts: tuple[int, int]) -> None:
    assert parse_positions(written(counts)) == counts
    assert len(position_names(written(counts), "both")) == sum(counts)


@PROPERTY
@given(
    prompts=PROMPTS,
    counts=COUNTS,
    answer=st.integers(1, 3),
    side=st.sampled_from(["left", "right"]),
)
def test_positions_are_inside_the_prompt_once_each_and_the_same_in_any_batch(
    prompts: list[tuple[int, ...]], counts: tuple[int, int], answer: int, side: str
) -> None:
    batch = collate([AnsweredPrompt(p, (1,) * answer) for p in prompts], 0, side)
    none = batch.input_ids.shape[1]
    first, last = counts
    found = prompt_positions(batch, written(counts), "both")
    assert found.shape == (len(prompts), first + last)
    for row, prompt in enumerate(prompts):
        columns = [column for column in found[row].tolist() if column != none]
        inside = [column - int(batch.prompt_start[row]) for column in columns]
        half = len(prompt) // 2
        heads, tails = min(first, half), min(last, half)
        assert inside == [*range(heads), *range(len(prompt) - tails, len(prompt))]
        assert len(set(inside)) == len(inside)
        assert batch.attention_mask[row, columns].all()
        assert (len(inside) == first + last) == (len(prompt) >= tokens_needed(written(counts)))


@pytest.fixture(scope="module")
def base(small: list[str]) -> Base:
    return load_base(composed_run(*small).last.model, torch.device("cpu"))


def shaken(model: AdaptedModel) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.parameters().items():
            if "parametrizations" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


@pytest.mark.parametrize("asked", [
    ("method=reft", "reft.positions=f2+l3"),
    ("method=reft", "reft.positions=f3+l1", "reft.share_weights=false"),
    ("method=joint", "reft.positions=l4", "lora.dropout=0"),
    ("method=red",),
])  # fmt: skip
def test_a_batch_gives_each_prompt_the_logits_that_it_has_alone(
    base: Base, small: list[str], asked: tuple[str, ...]
) -> None:
    with adapted(base, []) as model:
        torch.manual_seed(0)
        model.add(composed_run(*small, *asked).last.adapters)
        shaken(model)

        @settings(deadline=None, derandomize=True, max_examples=25)
        @given(prompts=PROMPTS, answer=st.integers(1, 3), pad=IDS)
        def same(prompts: list[tuple[int, ...]], answer: int, pad: int) -> None:
            sequences = [AnsweredPrompt(p, tuple(range(3, 3 + answer))) for p in prompts]
            with torch.no_grad():
                together = model.logits(collate(sequences, pad))
                for row, one in enumerate(sequences):
                    alone = model.logits(collate([one], pad))[0]
                    torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-4)

        same()
