"""A stage's answers in the local web view: a hundred thousand of them, filtered and by pages."""

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pandas as pd
import pytest

from heft_pipeline.store.sweep_folders import Sweep
from heft_pipeline.view import prediction_pages
from heft_pipeline.view.prediction_pages import NONE, Asked, prediction_page
from tests.report.made_sweeps import make_sweep, reseal
from tests.view.conftest import Got, View, last_stage

COUNT = 100_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A sweep of one run, with a hundred thousand answers of which each tenth is wrong."""
    sweep = make_sweep(tmp_path_factory.mktemp("large"), [("method=lora epochs=1", 0.6)])
    key = last_stage(sweep, "0-lora")
    number = np.arange(COUNT)
    wrong = number % 10 == 0
    gold = np.where(number % 2 == 0, "true", "false")
    table = pd.DataFrame({"id": [f"test/{n}" for n in number], "gold": gold})
    table["prediction"] = np.where(wrong, np.where(gold == "true", "false", "true"), gold)
    table.loc[7, "prediction"] = None
    for label in ("true", "false"):
        table[f"logprob_{label}"] = np.where(table.prediction == label, -0.125, -2.25)
    table["text"] = [f"Written {n}, said the Owl." for n in number]
    table["credit"] = np.where(wrong, 0.0, 1.0)
    table.loc[7, "credit"] = 0.5
    table.to_parquet(sweep.store.folder(key) / "predictions.parquet", index=False)
    reseal(sweep.store, key)
    return sweep


@pytest.fixture(scope="module")
def ask(large: Sweep, serve: Callable[[Path], View]) -> Callable[..., Got]:
    view, key = serve(large.store.output_dir), last_stage(large, "0-lora")
    return lambda **query: view.get(f"/stages/{key}?{urlencode(query)}")


def rows(got: Got) -> list[str]:
    assert got.status == 200
    return re.findall(r'data-label="example">([^<]*)<', got.text)


def test_a_page_has_fifty_rows_and_says_how_many_there_are(ask: Callable[..., Got]) -> None:
    got = ask()
    assert rows(got) == [f"test/{n}" for n in range(50)]
    assert "100,000 examples, shown are 1 to 50" in got.shown
    assert "Page 1 of 2,000" in got.shown
    assert len(got.text) < 100_000
    assert 'href="?page=2#predictions"' in got.text


def test_the_last_page_is_as_near_as_the_first(ask: Callable[..., Got]) -> None:
    assert rows(ask(page=2000)) == [f"test/{n}" for n in range(COUNT - 50, COUNT)]
    assert rows(ask(page=99_999_999)) == rows(ask(page=2000))
    for nonsense in ("0", "-1", "x", "1e9", "9" * 30):
        assert rows(ask(page=nonsense)) == rows(ask())


def test_wrong_ones_alone(ask: Callable[..., Got]) -> None:
    got = ask(wrong="1")
    assert rows(got)[:4] == ["test/0", "test/7", "test/10", "test/20"]
    assert "10,001 of 100,000 examples" in got.shown
    assert 'name="wrong" value="1" checked' in got.text
    assert 'href="?wrong=1&amp;page=2#predictions"' in got.text
    assert "(credit 0.50)" in got.shown


def test_by_the_answer_that_was_given(ask: Callable[..., Got]) -> None:
    assert rows(ask(choice="false", wrong="1"))[:2] == ["test/0", "test/10"]
    assert rows(ask(choice="true", wrong="1")) == []
    assert rows(ask(choice=NONE)) == ["test/7"]
    assert rows(ask(choice="maybe")) == []


def test_a_search_finds_ids_and_texts_in_any_case(ask: Callable[..., Got]) -> None:
    assert rows(ask(q="TEST/99999")) == ["test/99999"]
    assert rows(ask(q="written 12345,")) == ["test/12345"]
    assert rows(ask(q="(owl.*")) == [], "it is no regular expression"
    assert "0 of 100,000 examples" in ask(q="nowhere").shown


def test_each_answer_has_its_log_probabilities(ask: Callable[..., Got]) -> None:
    got = ask(q="test/99999")
    choices = re.findall(r'<span class="choice( chosen)?">([^<]*)</span>', got.text)
    assert choices == [("", "true \N{MINUS SIGN}2.250"), (" chosen", "false \N{MINUS SIGN}0.125")]


def test_the_table_is_read_once_for_all_pages(
    ask: Callable[..., Got], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask()
    monkeypatch.setattr("heft_pipeline.view.stage_parts.read_table", lambda _: 1 / 0)
    assert rows(ask(page=3)) == [f"test/{n}" for n in range(100, 150)]


def test_choices_of_their_own_and_written_answers() -> None:
    own = pd.DataFrame(
        {
            "id": ["a"],
            "gold": ["B"],
            "prediction": ["A"],
            "logprobs": [np.array([-1.0, -np.inf, np.nan])],
            "credit": [0.0],
        }
    )
    (row,) = prediction_page(own, Asked()).rows
    assert [(one.name, one.chosen, one.right) for one in row.choices] == [
        ("A", True, False), ("B", False, True), ("C", False, False)
    ]  # fmt: skip
    written = pd.DataFrame(
        {"id": [1], "gold": ["42"], "prediction": [None], "logprob": [-3.5], "text": ["so 41"],
         "credit": [0.0]}
    )  # fmt: skip
    (row,) = prediction_page(written, Asked(wrong=True)).rows
    assert (row.id, row.answer, row.text) == ("1", "", "so 41")
    assert row.choices[0].name == "42"
    assert row.choices[0].log_probability == -3.5


def test_a_table_that_memory_may_not_hold_is_not_read(
    large: Sweep, serve: Callable[[Path], View], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_pages, "_MOST_BYTES", 10_000)
    view = serve(large.store.output_dir)
    got = view.get(f"/stages/{last_stage(large, '0-lora')}")
    assert "which is too much to be shown" in got.shown
