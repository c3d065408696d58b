"""Which files are a split, and what is read from them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from heft_pipeline.data.rows import read_splits
from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Run
from heft_pipeline.report.provenance import _examples
from heft_pipeline.stage.preflight import preflight
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
from tests.conftest import make_rows, write_rows

ComposeRun = Callable[..., Run]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x1c"])
def test_line_separators_inside_a_text_are_text(
    compose_run: ComposeRun, small: list[str], tmp_path: Path, mark: str
) -> None:
    rows = make_rows(20, seed=3)
    rows[4]["passage"] = f"w1{mark}w2"
    text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    if mark == "\x1c":  # JSON allows no control character but as an escape
        text = text.replace("\x1c", "\\u001c")
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    data = compose_run(*small, f"data.path={tmp_path}").last.data
    assert [row for _, row in read_splits(data, 0)["eval"]] == rows


def test_another_encoding_is_said(
    compose_run: ComposeRun, small: list[str], tmp_path: Path
) -> None:
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text('{"passage": "w1"}\n', encoding="utf-16")
    data = compose_run(*small, f"data.path={tmp_path}").last.data
    with pytest.raises(UserError, match=r"train\.jsonl is not UTF-8"):
        read_splits(data, 0)


@pytest.fixture
def overlapping(tmp_path: Path) -> list[str]:
    """Two reported rows that are trained on, of which one has another answer; a repeated row."""
    train, reported = make_rows(60, seed=5), make_rows(20, seed=6)
    train[9] = dict(train[3])
    reported[4] = dict(train[3])
    reported[7] = {**train[5], "answer": not train[5]["answer"]}
    write_rows(tmp_path / "data" / "train.jsonl", train)
    write_rows(tmp_path / "data" / "validation.jsonl", reported)
    return [f"data.path={tmp_path / 'data'}"]


def test_reported_rows_that_are_trained_on_are_refused(
    compose_run: ComposeRun, small: list[str], overlapping: list[str]
) -> None:
    said = r"2 of 20 reported rows of small are also .*\(e\.g\. validation/4 is train/3\)"
    with pytest.raises(UserError, match=said):
        preflight(compose_run(*small, *overlapping).stages)


def test_allowed_overlap_is_counted_in_the_result_and_the_report(
    compose_run: ComposeRun, small: list[str], overlapping: list[str], tmp_path: Path
) -> None:
    asked = [*small, *overlapping, "method=lora", "epochs=1", "data.allow_overlap=true"]
    stage, store = compose_run(*asked).last, Store(tmp_path)
    preflight([stage])
    result = run_stage(stage, store).result
    assert (result["overlapping_rows"], result["repeated_rows"]) == (2, 1)
    said = _examples(result)
    assert "training rows that repeat an earlier one: 1; reported rows that are also" in said
    # Allowing it changes no result.
    assert compose_run(*asked[:-1]).last.fingerprint == stage.fingerprint
