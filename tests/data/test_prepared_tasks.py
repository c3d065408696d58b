"""The prepared tasks read rows in the columns that their data sets have."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from heft_pipeline.data.answer_text import PLAIN, AnswerText
from heft_pipeline.data.batches import epoch_batches
from heft_pipeline.data.prompts import Example, Task, load_task
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.data.tokenized import tokenized_task
from heft_pipeline.plan.graph import Run
from heft_pipeline.settings.schema import config_dir
from tests.data.prepared_tasks import PREPARED, Prepared, write_task
from tests.data.test_encode import trained_tokenizer

ComposeRun = Callable[..., Run]
TOKENIZER = trained_tokenizer(template="<s> $A")


def loaded(
    compose_run: ComposeRun, folder: Path, name: str, *asked: str
) -> tuple[Task, DataSettings]:
    run = compose_run(f"data={name}", f"data.path={write_task(folder, name)}", *asked)
    data = run.last.data
    return load_task(data, TOKENIZER, 0, run.last.trained_answers), data


def text(ids: tuple[int, ...]) -> str:
    return str(TOKENIZER.decode(ids, skip_special_tokens=True))


def first_row(task: Task, wanted: Prepared) -> Example:
    """The example of the first row, whether it was held out or not."""
    (found,) = [e for e in (*task.train, *task.dev) if text(e.prompt) == wanted.prompt]
    return found


def test_every_prepared_task_has_rows_here() -> None:
    tasks = {path.stem for path in (config_dir() / "data").glob("*.yaml")}
    assert set(PREPARED) == tasks - {"demo"}


@pytest.mark.parametrize("name", PREPARED)
def test_a_row_becomes_its_prompt_its_choices_and_the_right_one(
    compose_run: ComposeRun, tmp_path: Path, name: str
) -> None:
    wanted = PREPARED[name]
    task, data = loaded(compose_run, tmp_path, name, "data.dev_size=0.5")
    example = first_row(task, wanted)
    assert tuple(map(text, example.choices)) == wanted.choices
    assert example.gold == wanted.right
    assert text(example.answer) == wanted.choices[wanted.right]
    assert len(task.eval) == 2 * len(wanted.rows)
    assert not task.overlap and not task.repeated and not task.begun
    assert (example.answer[-1] == TOKENIZER.eos_token_id) == data.written
    assert task.shared == (name == "boolq")


def test_rows_have_different_numbers_of_choices(compose_run: ComposeRun, tmp_path: Path) -> None:
    task, _ = loaded(compose_run, tmp_path, "arc_easy")
    assert {len(e.choices) for e in task.eval} == {3, 4}
    assert task.labels == ("A", "B", "C", "D")
    shorter = next(e for e in task.eval if len(e.choices) == 3)
    assert text(shorter.answer) == " water"


def test_only_the_rest_of_a_sentence_is_scored_after_each_option(
    compose_run: ComposeRun, tmp_path: Path
) -> None:
    task, data = loaded(compose_run, tmp_path, "winogrande", "data.dev_size=0.5")
    for example in task.eval:
        rests = [text(c[n:]) for c, n in zip(example.choices, example.given, strict=True)]
        assert rests[0] == rests[1]
        assert rests[0].startswith(" was too ")
        assert [text(c[:n]) for c, n in zip(example.choices, example.given, strict=True)] == [
            " cup", " box",
        ]  # fmt: skip
    whole = load_task(dataclasses.replace(data, score="all"), TOKENIZER, 0)
    assert [e.choices for e in whole.eval] == [e.choices for e in task.eval]
    assert {e.given for e in whole.eval} == {()}


def test_an_answer_that_is_written_ends_with_the_end_token(
    compose_run: ComposeRun, tmp_path: Path
) -> None:
    task, data = loaded(compose_run, tmp_path, "gsm8k", "data.dev_size=1")
    assert all(e.answer[-1] == TOKENIZER.eos_token_id for e in task.train)
    assert all(e.choices[0] == e.answer[:-1] for e in task.train)
    assert task.eval[1].texts == ("1200 - 200\n#### 1,000",)
    told = load_task(data, TOKENIZER, 0, PLAIN, AnswerText(" So:{choice}"))
    assert all(
        text(one.choices[0]) == f" So:{text(other.choices[0])}"
        for one, other in zip(told.eval, task.eval, strict=True)
    )


@pytest.mark.parametrize("name", ["boolq", "arc_easy", "winogrande", "gsm8k"])
def test_a_tokenised_task_is_read_back_as_it_was(
    compose_run: ComposeRun, tmp_path: Path, name: str
) -> None:
    task, data = loaded(compose_run, tmp_path, name, "data.dev_size=0.5")
    trained = AnswerText(end_token=data.written)

    def again() -> Task:
        return tokenized_task(data, "model", 0, lambda: TOKENIZER, tmp_path / "cache", trained)

    assert again() == task
    (file,) = (tmp_path / "cache").glob("*.task")
    written = file.stat().st_mtime_ns
    assert again() == task
    assert file.stat().st_mtime_ns == written, "it was not tokenised again"


def test_answers_of_very_different_lengths_are_batched_by_their_whole_length() -> None:
    examples = [Example(str(n), (1,) * (10 + n % 3), 0, answer=(2,) * n) for n in range(1, 161)]
    batches = epoch_batches(examples, 8, seed=0, epoch=0, with_answers=True)
    assert sorted(i for batch in batches for i in batch) == list(range(160))
    spread = [max(len(examples[i].answer) for i in b) - min(len(examples[i].answer) for i in b)
              for b in batches]  # fmt: skip
    assert max(spread) < 16
    mixed = epoch_batches(examples, 8, seed=0, epoch=0)
    assert max(len(examples[i].answer) for i in mixed[0]) - 16 > min(
        len(examples[i].answer) for i in mixed[0]
    )
