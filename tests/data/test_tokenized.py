"""Tokenised tasks kept in files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from heft_pipeline.data.prompts import Task, load_task
from heft_pipeline.data.tokenized import tokenized_task
from heft_pipeline.models.base_model import load_tokenizer
from heft_pipeline.plan.graph import Run
from heft_pipeline.plan.stage_spec import StageSpec

ComposeRun = Callable[..., Run]


def kept(stage: StageSpec, cache: Path, tokenizer: Callable[[], Any] | None = None) -> Task:
    """A stage's tokenised task, from a cache."""
    load = tokenizer or (lambda: load_tokenizer(stage.model))
    return tokenized_task(stage.data, str(stage.model.content), stage.seed, load, cache)


def refuse() -> Any:
    raise AssertionError("tokenised again")


def test_a_task_is_tokenised_once_and_read_back_equal(
    compose_run: ComposeRun, small: list[str], tmp_path: Path
) -> None:
    stage = compose_run(*small, "data.choices.true=' yes w1'", "data.max_prompt_tokens=30").last
    task = tokenized_task(
        stage.data, str(stage.model.content), 0, lambda: load_tokenizer(stage.model), tmp_path
    )
    assert task == load_task(stage.data, load_tokenizer(stage.model), 0)
    assert task.truncated > 0
    assert kept(stage, tmp_path, refuse) == task


@pytest.mark.parametrize(
    "other", ["data.prompt='{passage} {question} Answer:'", "data.max_prompt_tokens=25", "seed=1"]
)
def test_another_task_is_tokenised_anew(
    compose_run: ComposeRun, small: list[str], tmp_path: Path, other: str
) -> None:
    first, second = compose_run(*small).last, compose_run(*small, other).last
    tokenized_task(
        first.data,
        str(first.model.content),
        first.seed,
        lambda: load_tokenizer(first.model),
        tmp_path,
    )
    with pytest.raises(AssertionError, match="tokenised again"):
        kept(second, tmp_path, refuse)


def test_a_broken_file_is_made_again(
    compose_run: ComposeRun, small: list[str], tmp_path: Path
) -> None:
    stage = compose_run(*small).last
    task = tokenized_task(
        stage.data, str(stage.model.content), 0, lambda: load_tokenizer(stage.model), tmp_path
    )
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:99])
    assert (
        tokenized_task(
            stage.data, str(stage.model.content), 0, lambda: load_tokenizer(stage.model), tmp_path
        )
        == task
    )
    assert kept(stage, tmp_path, refuse) == task


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(
    compose_run: ComposeRun, small: list[str], tmp_path: Path
) -> None:
    stage = compose_run(*small).last
    (tmp_path / "file").write_text("")
    assert tokenized_task(
        stage.data,
        str(stage.model.content),
        0,
        lambda: load_tokenizer(stage.model),
        tmp_path / "file",
    ).train
