"""Which tokens end texts, memory that runs out, and architectures of many shapes."""

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from heft_pipeline.adapters.adapted import AdaptedModel, adapted
from heft_pipeline.adapters.kind import AdapterSettings
from heft_pipeline.adapters.lora.settings import LoraSettings
from heft_pipeline.adapters.reft.settings import ReftSettings
from heft_pipeline.data.batches import AnsweredPrompt, collate
from heft_pipeline.models.base_model import Base, load_base
from heft_pipeline.models.settings import ModelSettings
from heft_pipeline.scoring.continuations import Place, continuations, end_tokens
from heft_pipeline.stage.probe import probe_base
from tests.models.tiny_architectures import save_tiny

CPU = torch.device("cpu")
TOKENS = 12
LORA = LoraSettings(rank=2, epochs=1, dropout=0.0).resolved()
REFT = ReftSettings(rank=2, epochs=1).resolved()
#: Random weights that are large enough for texts to differ.
LARGE = {"initializer_range": 0.4}


def prompts(count: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Prompts of 2 to 60 random words."""
    source = random.Random(seed)
    return [
        tuple(source.randrange(8, 68) for _ in range(int(60 ** source.random()) + 1))
        for _ in range(count)
    ]


def greedy(_places: Sequence[Place], logits: torch.Tensor) -> torch.Tensor:
    return logits


def base_of(name: str, folder: Path, **changes: Any) -> Base:
    saved = save_tiny(name, folder, **LARGE, **changes)
    return probe_base(load_base(ModelSettings(id=str(saved), dtype="float32"), CPU), name)


@contextmanager
def with_noise(base: Base, adapters: Sequence[AdapterSettings]) -> Iterator[AdaptedModel]:
    """The model with adapters that change what it writes."""
    with adapted(base, []) as model:
        torch.manual_seed(1)
        model.add(adapters)
        with torch.no_grad():
            for parameter in model.parameters().values():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
        yield model


@torch.no_grad()
def alone(model: AdaptedModel, prompt: tuple[int, ...]) -> list[int]:
    """What transformers writes after one unpadded prompt."""
    ids = torch.tensor([prompt])
    with model.editing(collate([AnsweredPrompt(prompt, (0,))], 0)):
        output = model.base.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
    text: list[int] = output[0, len(prompt) :].tolist()
    return text


def common_end(texts: Sequence[list[int]]) -> int:
    """The token that would end texts after the most different numbers of tokens."""
    after = {
        token: {text.index(token) for text in texts if token in text}
        for text in texts
        for token in text
    }
    return max(after, key=lambda token: (len(after[token]), token))


@pytest.mark.parametrize(
    ("name", "adapters"),
    [
        ("qwen3_moe", [LORA]),
        ("deepseek_v3", [REFT]),
        ("mamba", [LORA, REFT]),  # cannot be padded
        ("falcon_h1", [REFT]),  # keeps states besides keys and values
    ],
)
def test_each_text_is_what_transformers_writes_after_its_prompt_alone(
    tmp_path: Path, name: str, adapters: list[AdapterSettings]
) -> None:
    base, asked = base_of(name, tmp_path), prompts(30)
    with with_noise(base, adapters) as model:
        free = [alone(model, prompt) for prompt in asked]
        assert len({tuple(text) for text in free}) > 20, "the texts differ"
        end = common_end(free)
        expected = [text[: text.index(end)] if end in text else text for text in free]
        assert len({len(text) for text in expected}) >= 4, "they end at different steps"
        for size in (1, 3, 64):
            found = continuations(
                model, asked, tokens=TOKENS, batch_size=size, process=greedy, ends={end}
            )
            assert found == expected, size


@pytest.fixture
def llama(tmp_path: Path) -> Base:
    return base_of("llama", tmp_path)


def seen_passes(base: Base) -> list[tuple[int, int]]:
    """The rows and columns of each forward pass that follows."""
    passes: list[tuple[int, int]] = []
    base.model.get_input_embeddings().register_forward_hook(
        lambda _, given, __: passes.append(tuple(given[0].shape))
    )
    return passes


def until(lengths: Sequence[int], end: int) -> Callable[..., torch.Tensor]:
    """Let each text end after a number of tokens of its own."""

    def process(places: Sequence[Place], logits: torch.Tensor) -> torch.Tensor:
        logits[:, end] = -torch.inf
        for row, (i, written) in enumerate(places):
            if written == lengths[i]:
                logits[row, end] = torch.inf
        return logits

    return process


def test_progress_is_told_as_texts_end_and_places_are_taken_again(llama: Base) -> None:
    lengths = [random.Random(i).randint(0, 30) for i in range(60)]
    (end,) = end_tokens(llama)
    passes = seen_passes(llama)
    progress: list[int] = []
    with adapted(llama, []) as model:
        found = continuations(
            model,
            prompts(60),
            tokens=25,
            batch_size=8,
            process=until(lengths, end),
            advance=progress.append,
        )
    assert [len(text) for text in found] == [min(length, 25) for length in lengths]
    assert sum(progress) == 60
    assert len(progress) > 20, "it is told as texts end"
    steps = [rows for rows, columns in passes if columns == 1]
    assert max(steps) == 8
    assert sum(steps) == sum(min(length, 24) for length in lengths), "none is run after its end"
    plain = sum(max(lengths[n : n + 8]) for n in range(0, 60, 8))
    assert len(steps) < 0.8 * plain, "batches that wait for their longest text take more steps"


def test_memory_that_runs_out_begins_unfinished_texts_again_with_fewer_places(
    llama: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, (end,) = prompts(40), end_tokens(llama)
    lengths = [n % 9 + 1 for n in range(40)]
    begun: list[int] = []

    def process(places: Sequence[Place], logits: torch.Tensor) -> torch.Tensor:
        begun.extend(i for i, written in places if not written)
        return until(lengths, end)(places, logits)

    with adapted(llama, []) as model:
        ask = lambda size: continuations(  # noqa: E731
            model, asked, tokens=10, batch_size=size, process=process
        )
        expected = ask(64)
        assert sorted(begun) == list(range(40))
        begun.clear()
        run, sizes = llama.model.forward, []

        def sometimes(*given: Any, **named: Any) -> Any:
            sizes.append(len(named["input_ids"]))
            if len(sizes) in (9, 16):
                raise torch.OutOfMemoryError("out of memory")
            return run(*given, **named)

        monkeypatch.setattr(llama.model, "forward", sometimes)
        assert ask(1000) == expected
    assert max(sizes[:9]) > 20 >= max(sizes[9:16]) > 10 >= max(sizes[16:])
    times = {begun.count(i) for i in range(40)}
    assert {1, 2} <= times <= {1, 2, 3}, "what had ended is not begun again"


def test_memory_that_one_text_runs_out_of_is_an_error(
    llama: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    with adapted(llama, []) as model:
        model.whole.no_cache  # noqa: B018  (looked at before the model fails)
        monkeypatch.setattr(llama.model, "forward", never)
        with pytest.raises(torch.OutOfMemoryError):
            continuations(model, prompts(9), tokens=3, batch_size=4, process=greedy)


def test_nothing_is_written_where_no_token_may_be(llama: Base) -> None:
    with adapted(llama, []) as model:
        assert continuations(model, prompts(3), tokens=0, batch_size=2, process=greedy) == [[]] * 3
        assert continuations(model, [], tokens=5, batch_size=2, process=greedy) == []


def test_whole_passes_stop_once_all_texts_have_ended(llama: Base) -> None:
    lengths, (end,) = [1, 4, 2, 0], end_tokens(llama)
    base = dataclasses.replace(llama, no_cache="it continues from a cache differently")
    passes = seen_passes(base)
    with adapted(base, []) as model:
        found = continuations(
            model, prompts(4), tokens=20, batch_size=4, process=until(lengths, end)
        )
    assert [len(text) for text in found] == lengths
    assert [rows for rows, _ in passes] == [4, 3, 2, 1, 1]


def test_special_tokens_that_the_configuration_ends_with_end_a_text_too(llama: Base) -> None:
    assert end_tokens(llama) == {2}
    llama.model.config.eos_token_id = [2, 1, 9]
    assert end_tokens(llama) == {1, 2}, "9 is a word, which a default may name by chance"
    llama.model.config.eos_token_id = 9
    assert end_tokens(llama) == {2}
    llama.tokenizer.eos_token = None
    assert end_tokens(llama) == frozenset()
    llama.model.config.eos_token_id = [2, 1]
    with adapted(llama, []) as model:

        def two_ends(places: Sequence[Place], logits: torch.Tensor) -> torch.Tensor:
            logits[:, 1:3] = -torch.inf
            for row, (i, written) in enumerate(places):
                if written == i:
                    logits[row, 1 + i % 2] = torch.inf
            return logits

        found = continuations(model, prompts(6), tokens=9, batch_size=4, process=two_ends)
    assert [len(text) for text in found] == [0, 1, 2, 3, 4, 5]
