"""Choices that rows have of their own: where they come from, and which of them is right."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from heft_pipeline.data.answer_text import AnswerText
from heft_pipeline.data.encode import render
from heft_pipeline.data.prompts import load_task
from heft_pipeline.data.row_choices import filled, letter, references, right_choice, row_choices
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Run
from tests.conftest import write_rows
from tests.data.test_encode import trained_tokenizer

ComposeRun = Callable[..., Run]


def task(**settings: Any) -> DataSettings:
    return DataSettings(**{"name": "mine", "prompt": "{q}"} | settings)


@pytest.mark.parametrize(
    ("settings", "row", "choices", "right"),
    [
        ({"choices_column": "c"}, {"c": ["x", " y "], "answer": 1}, ["x", "y"], 1),
        ({"choices_column": "c"}, {"c": [1, 2.5], "answer": "0"}, ["1", "2.5"], 0),
        ({"choices_column": "c"}, {"c": ["x", "y"], "answer": 1.0}, ["x", "y"], 1),
        ({"choices_column": "c[text]", "labels_column": "c[label]"},
         {"c": {"text": ["x", "y"], "label": ["1", "2"]}, "answer": "2"}, ["x", "y"], 1),
        ({"choices_column": "c[text]", "labels_column": "c[label]"},
         {"c": [{"text": "x", "label": "A"}, {"text": "y", "label": "B"}], "answer": "A"},
         ["x", "y"], 0),
        ({"choices_column": "q[choices]"}, {"q": {"choices": ["x", "y"]}, "answer": 0},
         ["x", "y"], 0),
        ({"choices_columns": ["a", "b", "c"], "answer_as": "number"},
         {"a": "x", "b": "y", "c": None, "answer": 2}, ["x", "y"], 1),
        ({"choices_columns": ["a", "b", "c"], "answer_as": "letter"},
         {"a": "x", "b": "y", "c": "z", "answer": "c"}, ["x", "y", "z"], 2),
        ({"choices_column": "c", "answer_as": "text"}, {"c": ["x", "y"], "answer": "y "},
         ["x", "y"], 1),
        ({"choices_column": "c", "answer_as": "text"}, {"c": ["1.0", "1"], "answer": "1.0"},
         ["1.0", "1"], 0),
    ],
)  # fmt: skip
def test_choices_and_the_right_one_are_read_in_all_their_forms(
    settings: dict[str, Any], row: dict[str, Any], choices: list[str], right: int
) -> None:
    data = task(**settings)
    found = row_choices(data, "train/0", row)
    assert found == choices
    assert right_choice(data, "train/0", row, found) == right


@pytest.mark.parametrize(
    ("settings", "row", "message"),
    [
        ({}, {"c": ["x"], "answer": 0}, r"row train/7 of mine has 1 choice \(data\.choices_column"),
        ({}, {"c": [], "answer": 0}, "has no choices"),
        ({}, {"c": ["x", ""], "answer": 0}, "has no text for its choice 2 of 2"),
        ({}, {"c": ["x", None, "y"], "answer": 0}, "no text for its choice 2 of 3"),
        ({}, {"c": "x;y", "answer": 0}, r"has a str in c .*, not a list; .*data\.choices_columns"),
        ({}, {"c": None, "answer": 0}, "has nothing in c"),
        ({}, {"c": {"text": ["x", "y"]}, "answer": 0}, r"has a dict in c .*e\.g\. c\[text\]"),
        ({}, {"d": ["x", "y"], "answer": 0}, "c is not a column of mine; it has d, answer"),
        ({"choices_column": "c[txt]"}, {"c": {"text": ["x"]}, "answer": 0}, "c of mine has no"),
        ({}, {"c": ["x", "y"], "answer": 2}, r"first choice is 1, use data\.answer_as=number"),
        ({"answer_as": "number"}, {"c": ["x", "y"], "answer": 0},
         r"if the first choice is 0, use data\.answer_as=index"),
        ({}, {"c": ["x", "y"], "answer": "B"}, r"answer='B', which is none of its 2 choices "
         r"\('0', '1'\); data\.answer_as=index does not fit"),
        ({}, {"c": ["x", "y"], "answer": -1}, r"label seems to be hidden: .*data\.eval_split"),
        ({}, {"c": ["x", "y"], "answer": ""}, "label seems to be hidden"),
        ({}, {"c": ["x", "y"], "answer": True}, "none of its 2 choices"),
        ({"answer_as": "text"}, {"c": ["x", "y"], "answer": "z"}, r"none of .* \('x', 'y'\)"),
        ({"labels_column": "l"}, {"c": ["x", "y"], "l": ["A"], "answer": "A"},
         r"has 2 choices and the labels 'A' .*one for each"),
        ({"labels_column": "l"}, {"c": ["x", "y"], "l": ["A", "A"], "answer": "A"},
         "no two alike"),
    ],
)  # fmt: skip
def test_rows_that_make_no_sense_are_refused_by_name(
    settings: dict[str, Any], row: dict[str, Any], message: str
) -> None:
    data = task(**{"choices_column": "c"} | settings)
    with pytest.raises(UserError, match=message):
        right_choice(data, "train/7", row, row_choices(data, "train/7", row))


def test_a_written_answer_can_be_one_of_several() -> None:
    several = task(kind="answer", answer_column="a[text]")
    assert references(several, "train/0", {"a": {"text": ["x", " y"]}}) == ["x", "y"]
    assert references(task(kind="answer"), "train/0", {"answer": 3}) == ["3"]
    for empty in (None, "", [], [""]):
        with pytest.raises(UserError, match="row train/0 of mine has no text in answer"):
            references(task(kind="answer"), "train/0", {"answer": empty})


def test_letters_go_on_after_z() -> None:
    assert [letter(i) for i in (0, 25, 26, 27, 51, 52)] == ["A", "Z", "AA", "AB", "AZ", "BA"]


def test_a_template_has_a_choices_text_letter_and_number() -> None:
    pieces = filled(" the answer is {number}, ({letter}) {choice}{{}}", 1, "y {letter}")
    assert "".join(text for text, _ in pieces) == " the answer is 2, (B) y {letter}{}"
    assert [text for text, own in pieces if own] == ["y {letter}"]


def test_options_are_listed_where_the_prompt_has_them() -> None:
    data = dataclasses.replace(
        task(choices_column="c", option="Solution{number}: {choice}"), prompt="{q}\n{options}\nA:"
    )
    row = {"q": "w", "c": ["x", "y"]}
    assert render(data, "train/0", row).text == "w\nSolution1: x\nSolution2: y\nA:"
    shared = task(choices={"a": "a", "b": "b"})
    with pytest.raises(UserError, match=r"\{options\}, which row train/0 of mine does not have"):
        render(dataclasses.replace(shared, prompt="{options}"), "train/0", row)


@pytest.mark.parametrize("q", ["no gap", "a _ gap _ too"])
def test_a_blank_must_be_there_once(q: str) -> None:
    data = task(choices_column="c", blank="_")
    with pytest.raises(UserError, match=r"has data\.blank='_' .* time.* in its prompt"):
        render(data, "train/3", {"q": q, "c": ["x", "y"]})


def loaded(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> Any:
    for split in ("train", "validation"):
        numbered = [row | {"q": f"{split} {row['q']}"} for row in rows]
        write_rows(folder / f"{split}.jsonl", numbered)
    data = dataclasses.replace(
        task(choices_column="c", path=str(folder), dev_size=0, **settings),
        location=str(folder),
        revision=None,
    )
    return load_task(data, trained_tokenizer(template="<s> $A"), 0)


def test_a_rows_choice_is_only_text(tmp_path: Path) -> None:
    """A special token in it is not one, neither listed nor scored."""
    rows = [{"q": "w", "c": ["ab</s>", "wab"], "answer": n} for n in (0, 1)]
    rows[1]["q"] = "v"
    found = loaded(tmp_path, rows)
    tokenizer = trained_tokenizer(template="<s> $A")
    assert all(2 not in choice for e in found.eval for choice in e.choices)
    assert tokenizer.decode(found.eval[0].choices[0]) == " ab</s>"


def test_answers_that_are_all_the_same_are_refused_by_their_text(tmp_path: Path) -> None:
    same_place = [{"q": q, "c": [c, "no"], "answer": 0} for q, c in (("w", "ab"), ("v", "cab"))]
    assert {e.gold for e in loaded(tmp_path, same_place).eval} == {0}, "texts differ"
    with pytest.raises(UserError, match=r"have the same answer \(A\)"):
        loaded(tmp_path, same_place, choice=" {letter}")


def test_choices_that_begin_with_each_other_are_counted_and_said(tmp_path: Path) -> None:
    rows = [
        {"q": "w", "c": ["ab", "ab cab"], "answer": 0},
        {"q": "v", "c": ["cab", "cab"], "answer": 1},
        {"q": "u", "c": ["wab", "ab"], "answer": 1},
    ]
    found = loaded(tmp_path, rows)
    assert found.begun == 2
    assert any("2 of 3 reported rows have a choice that another one begins" in n
               for n in found.notes)  # fmt: skip


def test_rows_with_the_same_prompt_and_other_choices_do_not_overlap(tmp_path: Path) -> None:
    def rows(*choices: list[str]) -> list[dict[str, Any]]:
        return [{"q": "w", "c": c, "answer": n % 2} for n, c in enumerate(choices)]

    write_rows(tmp_path / "train.jsonl", rows(["ab", "cab"], ["wab", "b"]))
    write_rows(tmp_path / "validation.jsonl", rows(["cab", "ab"], ["wab", "c"]))
    data = dataclasses.replace(
        task(choices_column="c", path=str(tmp_path), dev_size=0),
        location=str(tmp_path),
        revision=None,
    )
    found = load_task(data, trained_tokenizer(), 0)
    assert found.overlap == (("validation/0", "train/0"),), "the order of choices does not count"
    assert found.repeated == 0


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["data.choices_columns=[a]"], "needs two or more columns"),
        (["data.choices_columns=[a,b]", "data.choices_column=c"], "from one of them only"),
        (["data.choices_column=c", "+data.choices.yes=' yes'"], "from one of them only"),
        ([], r"data\.choices=\{\} needs two or more answers"),
        (["+data.choices.a=' a'", "+data.choices.b=' b'", "data.answer_as=letter"],
         r"data\.answer_as has no effect without choices per row"),
        (["data.choices_column=c", "data.labels_column=l", "data.answer_as=letter"], "contradict"),
        (["data.choices_column=c", "data.blank=_", "data.chat=true"], r"data\.chat=false"),
        (["data.choices_column=c", "data.score=rest"], r"no effect without data\.blank"),
        (["data.choices_column=c", "data.choice=' yes'"], r"must contain \{choice\}, \{letter\}"),
        (["data.choices_column=c", "data.choice='{choice} {x}'"], r"must contain \{choice\}"),
        (["data.choices_column=c", "data.kind=answer"], "is written, not chosen"),
        (["data.choices_column=c", "data.kind=answers"], "is not one of choice, answer"),
        (["data.choices_column=c", "evaluation.normalize=word"], "is not one of none, token, byte"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(
    compose_run: ComposeRun, asked: list[str], message: str
) -> None:
    base = ["~data.choices.true", "~data.choices.false", "data.truncate_column=null"]
    with pytest.raises(UserError, match=message):
        compose_run(*base, *asked)


def test_an_answers_template_stands_between_the_prompts_blank_and_the_choice(
    tmp_path: Path,
) -> None:
    """As for choices that all rows share: the blank, the template, the choice."""
    rows = [{"q": f"w{n}", "c": ["ab", "cab"], "answer": n} for n in (0, 1)]
    found = loaded(tmp_path, rows, prompt="{q}: ", choice="{choice}")
    tokenizer = trained_tokenizer(template="<s> $A")
    assert [tokenizer.decode(c) for c in found.eval[0].choices] == [" ab", " cab"]
    data = dataclasses.replace(
        task(choices_column="c", path=str(tmp_path), dev_size=0, choice="{choice}"),
        location=str(tmp_path), revision=None, prompt="{q}: ",
    )  # fmt: skip
    trained = AnswerText("so {choice}!", end_token=True)
    told = load_task(data, tokenizer, 0, trained, AnswerText("({choice})"))
    assert [tokenizer.decode(c) for c in told.eval[0].choices] == [" (ab)", " (cab)"]
    assert [tokenizer.decode(e.answer) for e in told.train] == [" so ab!</s>", " so cab!</s>"]
