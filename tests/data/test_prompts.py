"""From rows to token ids."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from heft_pipeline.data.answer_text import PLAIN
from heft_pipeline.data.answers import answer_tokens
from heft_pipeline.data.asked import read_answers
from heft_pipeline.data.dev_split import hold_out
from heft_pipeline.data.encode import Encoder, render
from heft_pipeline.data.prompts import Task, load_task
from heft_pipeline.data.rows import read_splits
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.errors import UserError
from heft_pipeline.models.base_model import load_tokenizer
from heft_pipeline.plan.graph import Run
from tests.conftest import composed_run, write_rows

ComposeRun = Callable[..., Run]


def loaded(
    compose_run: ComposeRun, *overrides: str, seed: int = 0
) -> tuple[Task, DataSettings, Any]:
    stage = compose_run(*overrides).last
    tokenizer = load_tokenizer(stage.model)
    return load_task(stage.data, tokenizer, seed), stage.data, tokenizer


def test_a_long_passage_is_cut_and_never_the_question(
    compose_run: ComposeRun, small: list[str], small_data: Path
) -> None:
    whole, _, tokenizer = loaded(compose_run, *small)
    cut, _, _ = loaded(compose_run, *small, "data.max_prompt_tokens=20")
    rows = [json.loads(x) for x in (small_data / "validation.jsonl").read_text().splitlines()]
    assert cut.truncated > 0 == whole.truncated
    for row, long, short in zip(rows, whole.eval, cut.eval, strict=True):
        assert len(short.prompt) == min(20, len(long.prompt))
        text = tokenizer.decode(short.prompt, skip_special_tokens=True)
        assert text.endswith(f"Question: {row['question']} Answer:")
        passage = text.removesuffix(f" Question: {row['question']} Answer:")
        assert row["passage"].startswith(passage)
        assert short.gold == long.gold


def test_an_uncuttable_prompt_is_refused(compose_run: ComposeRun, small: list[str]) -> None:
    with pytest.raises(UserError, match="even without its passage"):
        loaded(compose_run, *small, "data.max_prompt_tokens=3")


@pytest.mark.parametrize(
    ("trues", "falses", "size", "expected"),
    [(62, 38, 0.1, (6, 4)), (62, 38, 50, (31, 19)), (14, 10, 0.1, (1, 1)), (23, 1, 0.1, (2, 0))],
)
def test_dev_rows_have_the_same_share_of_each_answer(
    trues: int, falses: int, size: float, expected: tuple[int, int]
) -> None:
    rows = [(str(i), {"answer": i < trues}) for i in range(trues + falses)]
    for seed in range(5):
        train, dev = hold_out(rows, "answer", size, seed)
        assert sorted(id for id, _ in [*train, *dev]) == sorted(id for id, _ in rows)
        assert (sum(row["answer"] for _, row in dev), len(dev)) == (expected[0], sum(expected))


def test_every_answer_that_can_be_spared_is_in_dev() -> None:
    rows = [(str(i), {"answer": "aaabc"[max(0, i - 95)]}) for i in range(100)]
    _, dev = hold_out(rows, "answer", 0.1, seed=0)
    assert len(dev) == 10
    assert {row["answer"] for _, row in dev} == {"a"}  # b and c are there once: needed for training


def test_dev_rows_are_held_out_of_train_by_the_seed(
    compose_run: ComposeRun, small: list[str]
) -> None:
    task, _, _ = loaded(compose_run, *small, "data.dev_size=0.25")
    train, dev = ({e.id for e in split} for split in (task.train, task.dev))
    assert (len(train), len(dev)) == (90, 30)
    assert not train & dev
    again, _, _ = loaded(compose_run, *small, "data.dev_size=0.25")
    assert {e.id for e in again.dev} == dev
    other, _, _ = loaded(compose_run, *small, "data.dev_size=0.25", seed=1)
    assert {e.id for e in other.dev} != dev
    counted, _, _ = loaded(compose_run, *small, "data.dev_size=7")
    assert len(counted.dev) == 7
    assert {e.id for e in task.eval} == {e.id for e in other.eval}


def test_hold_out_refuses_to_leave_a_side_empty() -> None:
    rows: list[Any] = [(str(i), {}) for i in range(10)]
    for size in (0.01, 10.0, 11.0):
        with pytest.raises(UserError, match=r"data\.dev_size"):
            hold_out(rows, "answer", size, seed=0)


def test_ids_come_from_a_column_or_the_row_number(
    compose_run: ComposeRun, small: list[str]
) -> None:
    by_number, _, _ = loaded(compose_run, *small)
    assert by_number.eval[3].id == "validation/3"
    by_column, _, _ = loaded(compose_run, *small, "data.id_column=passage")
    assert by_column.eval[3].id.startswith("w")
    with pytest.raises(UserError, match=r"data\.id_column=idx"):
        loaded(compose_run, *small, "data.id_column=idx")


def test_parquet_and_jsonl_give_the_same_task(
    compose_run: ComposeRun, small: list[str], small_data: Path, tmp_path: Path
) -> None:
    import pandas as pd

    for split in ("train", "validation"):
        table = pd.read_json(small_data / f"{split}.jsonl", lines=True)
        half = len(table) // 2
        table[:half].to_parquet(tmp_path / f"{split}-00000-of-00002.parquet")
        table[half:].to_parquet(tmp_path / f"{split}-00001-of-00002.parquet")
    expected, _, _ = loaded(compose_run, *small)
    task, _, _ = loaded(compose_run, *small, f"data.path={tmp_path}")
    assert task == expected


def test_the_hubs_loader_reads_the_same_rows(
    compose_run: ComposeRun, small: list[str], small_data: Path
) -> None:
    """datasets.load_dataset, as for a hub data set, on a local folder in its place."""
    local = compose_run(*small).last.data
    hub = dataclasses.replace(local, revision="main")
    assert read_splits(hub, 0) == read_splits(local, 0)
    with pytest.raises(UserError, match=r"data\.eval_split=test"):
        read_splits(dataclasses.replace(hub, eval_split="test"), 0)


def test_choices_are_tokenised_as_they_stand_after_the_prompt(
    compose_run: ComposeRun, small: list[str]
) -> None:
    task, data, tokenizer = loaded(compose_run, *small, "data.choices.true=' yes w3 w4'")
    assert [tokenizer.decode(c) for c in task.eval[0].choices] == ["yes w3 w4", "no"]
    assert task.labels == ("true", "false")
    prompt = render(data, "train/0", {"passage": "w1 w2", "question": "w1"}).prompt
    assert answer_tokens(data, Encoder(tokenizer), prompt, PLAIN) == task.eval[0].choices


def test_a_merging_tokenizer_gets_its_choices_by_themselves(
    compose_run: ComposeRun, small: list[str]
) -> None:
    """Where prompt and choice merge into one token, the choice still has tokens of its own."""
    _, data, tokenizer = loaded(compose_run, *small)
    glued = dataclasses.replace(data, choices={"true": "yes", "false": "no"})
    assert answer_tokens(glued, Encoder(tokenizer), [("w1 w2", False)], PLAIN) == ((3,), (4,))


def test_other_labels_than_booleans(
    compose_run: ComposeRun, small: list[str], tmp_path: Path
) -> None:
    labels = ["entailment", 1, "entailment", 1, "entailment", 1, "entailment", 1]
    rows = [{"passage": "w1 w2", "question": "w3", "label": x} for x in labels]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    asked = [f"data.path={tmp_path}", "data.answer_column=label", "data.dev_size=4"]
    choices = ["~data.choices.true", "~data.choices.false", "+data.choices.entailment=' yes'"]
    task, _, _ = loaded(compose_run, *small, *asked, *choices, "+data.choices.1=' no'", seed=3)
    assert [e.gold for e in task.eval] == [0, 1] * 4
    assert task.labels == ("entailment", "1")


@pytest.mark.parametrize(
    ("choices", "values", "labels"),
    [
        ("{yes: ' yes', no: ' no'}", [True, False], ["true", "false"]),
        ("{'true': ' yes', False: ' no'}", [True, False], ["true", "false"]),
        ("{'yes': ' yes', 'no': ' no'}", ["yes", "no"], ["yes", "no"]),
        ("{0: ' yes', 1: ' no'}", [0, 1], ["0", "1"]),
        ("{0: ' yes', 1: ' no'}", ["0", "1"], ["0", "1"]),
        ("{0.5: ' yes', 1.0: ' no'}", [0.5, 1.0], ["0.5", "1.0"]),
        ("{'True': ' yes', 'False': ' no'}", ["True", "False"], ["True", "False"]),
        ("{a: 1, b: ' no'}", ["a", "b"], ["a", "b"]),
    ],
)
def test_labels_of_a_yaml_file_are_compared_as_a_row_shows_them(
    task_file: Callable[..., DataSettings], choices: str, values: list[Any], labels: list[str]
) -> None:
    data = task_file(choices, values)
    assert data.labels == tuple(labels)
    assert all(isinstance(text, str) for text in data.choices.values())
    found = read_answers(data, "eval", read_splits(data, 0)["eval"])
    assert [one.gold for one in found] == [0, 1] * 8


@pytest.mark.parametrize(
    ("choices", "values", "said"),
    [
        ("{yes: ' yes', no: ' no'}", ["yes", "no"],
         r"answer='yes', which is not among data\.choices \(true, false\); the column has 'no', "
         r"'yes', .*yes and no need quotes"),
        ("{'true': ' yes', 'false': ' no'}", ["True", "False"],
         r"not among data\.choices \(true, false\); the column has 'False', 'True'"),
        ("{0: ' yes', 1: ' no'}", [True, False], r"\(0, 1\); the column has False, True"),
        ("{'true': yes, 'false': no}", [True, False], r"choices\.true is True, which is no text"),
        ("{'true': 0.10, 'false': no}", [True, False], r"choices\.true is 0\.1, which is no text"),
        ("{'true': null, 'false': no}", [True, False], r"choices\.true is None, which is no text"),
        ("{'true': a, yes: b, no: c}", [True, False], r"choices has the label true twice"),
    ],
)  # fmt: skip
def test_labels_and_texts_that_yaml_takes_for_something_else_are_explained(
    task_file: Callable[..., DataSettings], choices: str, values: list[Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        data = task_file(choices, values)
        read_answers(data, "eval", read_splits(data, 0)["eval"])


@pytest.fixture
def task_file(tmp_path: Path) -> Callable[..., DataSettings]:
    """Makes a task of a user's own folder of configs, with choices as YAML has them."""

    def made(choices: str, values: list[Any]) -> DataSettings:
        rows = [{"question": f"w{n}", "answer": value} for n in range(8) for value in values]
        for split in ("train", "validation"):
            write_rows(tmp_path / "rows" / f"{split}.jsonl", rows)
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "mine.yaml").write_text(
            f"path: {tmp_path / 'rows'}\nprompt: '{{question}}'\nchoices: {choices}\n"
        )
        return composed_run(f"hydra.searchpath=[{tmp_path}]", "data=mine").last.data

    return made
