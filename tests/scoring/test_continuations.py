"""What is written after many prompts at once is what transformers writes after each alone."""

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
from heft_pipeline.data.batches import AnsweredPrompt, collate
from heft_pipeline.models.base_model import Base, load_base
from heft_pipeline.models.reuse.estimate import Choice
from heft_pipeline.models.reuse.frozen_prompts import FrozenPrompts
from heft_pipeline.models.reuse.kept_activations import Kept
from heft_pipeline.plan.graph import Run
from heft_pipeline.scoring import continuations as ways
from heft_pipeline.scoring.continuations import Place, Process, continuations
from heft_pipeline.stage.probe import probe_base
from tests.models.tiny_architectures import save_tiny

ComposeRun = Callable[..., Run]
CPU = torch.device("cpu")
TOKENS = 24
KINDS = [["lora"], ["reft"], ["red"], ["lora", "reft"]]


def some_prompts(count: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Prompts of 1 to 60 tokens."""
    source = random.Random(seed)
    lengths = [1, 2, 60, *(source.randint(1, 60) for _ in range(count - 3))]
    return [tuple(source.randrange(3, 68) for _ in range(length)) for length in lengths]


def likeliest(_: Sequence[Place], logits: torch.Tensor) -> torch.Tensor:
    return logits


def written(
    model: AdaptedModel,
    prompts: Sequence[tuple[int, ...]],
    size: int,
    tokens: int = TOKENS,
    process: Process = likeliest,
) -> list[list[int]]:
    return continuations(model, prompts, tokens=tokens, batch_size=size, process=process)


def loaded(compose_run: ComposeRun, small: list[str], folder: Path) -> Base:
    model = compose_run(*small, f"model.id={folder}").last.model
    return probe_base(load_base(model, CPU), "model.id=x")


@torch.no_grad()
def randomize(model: AdaptedModel) -> None:
    """Move what is trained far from where it starts, which is to change nothing."""
    for name, parameter in model.parameters().items():
        if "parametrizations" not in name:
            parameter.add_(0.3 * torch.randn(parameter.shape))


@contextmanager
def with_kinds(
    base: Base, compose_run: ComposeRun, small: list[str], stages: Sequence[str], folder: Path
) -> Iterator[AdaptedModel]:
    """The model with an adapter a stage, whose weights are random and far from 0."""
    parents: list[tuple[AdapterSettings, Path]] = []
    for number, stage in enumerate(stages):
        (settings,) = compose_run(*small, f"method.stages=[{stage}]").last.adapters
        with adapted(base, parents) as model:
            torch.manual_seed(number)
            model.add([settings])
            randomize(model)
            model.finish()
            model.save(folder / stage)
        parents.append((settings, folder / stage))
    with adapted(base, parents) as model:
        yield model


@torch.no_grad()
def alone(model: AdaptedModel, prompts: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """What transformers writes after each prompt by itself, without padding, to the end token."""
    base, found = model.base, []
    for prompt in prompts:
        batch = collate([AnsweredPrompt(prompt, (0,))], base.pad_token_id)
        end = base.tokenizer.eos_token_id
        with model.editing(batch):
            output = base.model.generate(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, do_sample=False,
                max_new_tokens=TOKENS, eos_token_id=end, pad_token_id=base.pad_token_id,
            )  # fmt: skip
        text = output[0, len(prompt) :].tolist()
        found.append(text[: text.index(end)] if end in text else text)
    return found


def end_somewhere(model: AdaptedModel, prompts: Sequence[tuple[int, ...]]) -> None:
    """Make that token the end token which ends texts at the most different lengths."""
    base = model.base
    base.tokenizer.eos_token = "</s>"
    texts = alone(model, prompts)
    places: dict[int, set[int]] = {}
    for text in texts:
        for token in set(text):
            places.setdefault(token, set()).add(text.index(token))
    # Of several, always the same one.
    best = max(sorted(places), key=lambda token: len(places[token]))
    base.tokenizer.eos_token = base.tokenizer.convert_ids_to_tokens(best)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("llama", "_side_by_side"),
        ("gpt2", "_side_by_side"),
        ("opt", "_side_by_side"),
        ("mixtral", "_side_by_side"),
        ("gpt_oss", "_by_transformers"),
        ("jamba", "_by_transformers"),
        ("gpt2 without padding", "_by_whole_passes"),
    ],
)
def test_every_batch_size_writes_what_each_prompt_alone_writes(
    compose_run: ComposeRun,
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    way: str,
) -> None:
    folder = save_tiny(name.split()[0], tmp_path / name, initializer_range=0.3)
    base = loaded(compose_run, small, folder)
    if "without padding" in name:
        base = dataclasses.replace(base, no_padding="it was asked for")
    used = set()

    def watch(other: str) -> None:
        real = getattr(ways, other)

        def noted(*given: Any) -> Any:
            used.add(other)
            return real(*given)

        monkeypatch.setattr(ways, other, noted)

    for other in ("_side_by_side", "_by_transformers", "_by_whole_passes"):
        watch(other)
    prompts = some_prompts(19)
    with adapted(base, []) as model:
        end_somewhere(model, prompts)
        expected = alone(model, prompts)
        assert len(set(map(len, expected))) > 4
        for size in (1, 3, 64):
            assert written(model, prompts, size) == expected, size
    assert used == {way}


@pytest.mark.parametrize("stages", KINDS, ids="-".join)
def test_adapters_edit_what_is_written_as_they_do_in_transformers(
    compose_run: ComposeRun, small: list[str], small_model: Path, tmp_path: Path, stages: list[str]
) -> None:
    """ReFT edits prompts only, RED and LoRA act on every new token too."""
    base = loaded(compose_run, small, small_model)
    prompts = some_prompts(24)
    with adapted(base, []) as model:
        untouched = alone(model, prompts)
    with with_kinds(base, compose_run, small, stages, tmp_path) as model:
        end_somewhere(model, prompts)
        expected = alone(model, prompts)
        assert len(set(map(len, expected))) > 4
        assert sum(map(list.__ne__, expected, untouched)) > 12
        for size in (1, 3, 64):
            assert written(model, prompts, size) == expected, size


def test_pyrefts_engine_edits_what_is_written_too(
    compose_run: ComposeRun, small: list[str], small_model: Path
) -> None:
    base, prompts = loaded(compose_run, small, small_model), some_prompts(8)
    found = []
    for engine in ("hooks", "pyreft"):
        stage = compose_run(*small, "method=reft", f"reft.engine={engine}").last
        with adapted(base, []) as model:
            torch.manual_seed(0)
            model.add(stage.adapters)
            randomize(model)
            found.append(written(model, prompts, 8, 6))
    with adapted(base, []) as model:
        untouched = written(model, prompts, 8, 6)
    assert found[0] == found[1] != untouched


def test_prompts_whose_first_tokens_are_kept_are_continued_too(
    compose_run: ComposeRun, small: list[str], small_model: Path
) -> None:
    base, prompts = loaded(compose_run, small, small_model), some_prompts(16)
    stage = compose_run(*small, "method=reft", "reft.positions=l3").last
    with adapted(base, []) as model:
        model.add(stage.adapters)
        randomize(model)
        expected = alone(model, prompts)
        model.forward = FrozenPrompts(base, Choice(3, 0, ""), Kept(CPU, 1e9, None, operations=1.0))
        assert written(model, prompts, 5) == expected


def test_a_place_is_taken_again_and_batches_stay_full(
    compose_run: ComposeRun,
    small: list[str],
    small_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, end = loaded(compose_run, small, small_model), 2
    source = random.Random(0)
    lengths = [source.randint(1, 30) for _ in range(64)]
    real, sizes = base.model.forward, []

    def counted(*_: Any, input_ids: torch.Tensor, **more: Any) -> Any:
        sizes.append((len(input_ids), input_ids.shape[1]))
        return real(input_ids=input_ids, **more)

    def until_its_length(places: Sequence[Place], logits: torch.Tensor) -> torch.Tensor:
        for row, (i, written) in enumerate(places):
            logits[row, end] = torch.inf if written == lengths[i] else -torch.inf
        return logits

    monkeypatch.setattr(base.model, "forward", counted)
    with adapted(base, []) as model:
        texts = written(model, some_prompts(64), 8, 40, until_its_length)
    assert [len(text) for text in texts] == lengths
    steps = [rows for rows, width in sizes if width == 1]
    assert max(steps) == 8
    assert sum(steps) == sum(lengths), "an ended text is not run again"
    assert sum(steps) / len(steps) > 6.5, "a batch by itself would have about half of its rows"


def test_a_cut_text_is_as_long_as_was_asked_for_and_its_end_token_is_not_part_of_it(
    compose_run: ComposeRun, small: list[str], small_model: Path
) -> None:
    base, prompts = loaded(compose_run, small, small_model), some_prompts(9)

    def ends_after_three(places: Sequence[Place], logits: torch.Tensor) -> torch.Tensor:
        for row, (i, written) in enumerate(places):
            logits[row, 2] = torch.inf if i % 2 and written == 3 else -torch.inf
        return logits

    for way in (base, dataclasses.replace(base, no_padding="it was asked for")):
        with adapted(way, []) as model:
            lengths = [list(map(len, written(model, prompts, 4, n, ends_after_three)))
                       for n in (1, 3, 4, 7)]  # fmt: skip
        assert lengths == [[1] * 9, [3] * 9, [4, 3] * 4 + [4], [7, 3] * 4 + [7]]


def test_no_prompts_give_no_texts(
    compose_run: ComposeRun, small: list[str], small_model: Path
) -> None:
    with adapted(loaded(compose_run, small, small_model), []) as model:
        assert written(model, [], 4) == []
