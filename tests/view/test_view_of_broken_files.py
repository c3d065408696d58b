"""Broken, half-written and foreign files: one sentence in their place, and the rest is shown."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from heft_pipeline.files.locks import file_lock, lease_of
from heft_pipeline.store.sweep_folders import Sweep
from tests.report.made_sweeps import make_sweep, reseal
from tests.view.conftest import Got, View, last_stage

RUNS = [("method=lora epochs=2", 0.6), ("method=reft epochs=2", 0.7)]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return make_sweep(tmp_path, RUNS)


def plainly(got: Got) -> str:
    """What a page says that must be no error."""
    assert got.status == 200, got.shown
    assert "Traceback" not in got.text
    assert "<!doctype html>" in got.text
    return got.shown


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "\0\0\0", "null", '{"runs": [], "stages": {}}', "[" * 100_000,
        '{"runs": 1, "stages": 2, "complete_before": 3}', "\udcff",
        '{"runs": [{"name": "x", "overrides": 3, "method": 1, "epochs": {}, "stages": ["a"]}], '
        '"stages": {"a": {}}, "complete_before": []}',
        '{"runs": [{"name": "../x", "overrides": [], "method": "lora", "epochs": 1, '
        '"stages": []}], "stages": {}, "complete_before": []}',
    ],
)  # fmt: skip
def test_a_broken_plan_is_a_sentence_and_other_sweeps_are_shown(
    content: str, sweep: Sweep, serve: Callable[[Path], View]
) -> None:
    broken = sweep.folder.parent / "broken"
    broken.mkdir()
    (broken / "plan.json").write_text(content, errors="surrogateescape")
    view = serve(sweep.store.output_dir)
    shown = plainly(view.get("/"))
    assert "broken" in shown
    assert "70.0%" in shown
    said = plainly(view.get("/sweeps/broken"))
    assert len(said) < 700
    assert "plan.json" in said or "RecursionError" in said or "Error" in said or "stages" in said
    plainly(view.get(f"/stages/{last_stage(sweep, '0-lora')}"))


def test_a_broken_plan_with_a_copy_is_shown_and_said(
    sweep: Sweep, serve: Callable[[Path], View]
) -> None:
    (sweep.folder / "plan.json").write_text("{")
    shown = plainly(serve(sweep.store.output_dir).get("/sweeps/made"))
    assert "plan.json is broken, and its copy is shown" in shown
    assert "70.0%" in shown


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("predictions.parquet", b"PAR1 not really", "The predictions cannot be shown:"),
        ("predictions.parquet", b"", "The predictions cannot be shown:"),
        ("metrics.jsonl", b'{"event": "step", "st', "Nothing is logged yet."),
        ("metrics.jsonl", b"\xff\xfe\0", "Nothing is logged yet."),
        ("metrics.jsonl", b'{"event": "step", "step": 1, "epoch": 1, "loss": NaN}\n', "Nothing is"),
        ("stage.json", b"{", "Its settings are missing, broken or of another version."),
        ("stage.json", b'{"version": 5}', "Its settings are missing, broken or of another"),
        ("result.json", b"{", "damaged"),
        ("stage.log", b"\xff\xfe\x00bytes that are no text\n", "bytes that are no text"),
    ],
)
def test_a_broken_file_of_a_stage_is_a_sentence_in_its_place(
    name: str, content: bytes, said: str, sweep: Sweep, serve: Callable[[Path], View]
) -> None:
    key = last_stage(sweep, "0-lora")
    (sweep.store.folder(key) / name).write_bytes(content)
    view = serve(sweep.store.output_dir)
    assert said in plainly(view.get(f"/stages/{key}"))
    shown = plainly(view.get("/sweeps/made"))
    assert "70.0%" in shown, "the other run is shown"
    plainly(view.get("/"))


@pytest.mark.parametrize("key", ["accuracy", "n_eval", "train_tflop", "trainable_params"])
@pytest.mark.parametrize("value", ["many", [], {}, True])
def test_a_result_of_other_kinds_than_numbers_spoils_no_page(
    key: str, value: object, sweep: Sweep, serve: Callable[[Path], View]
) -> None:
    stage = last_stage(sweep, "0-lora")
    reseal(sweep.store, stage, **{key: value})
    view = serve(sweep.store.output_dir)
    for path in ("/", "/sweeps/made", f"/stages/{stage}"):
        shown = plainly(view.get(path))
        assert path.startswith("/stages") or "70.0%" in shown, "the other run is shown"
    assert f"holds no number as {key}" in plainly(view.get("/sweeps/made"))
    assert json.loads(view.get("/live/sweeps/made").text)["texts"]


@pytest.mark.parametrize(
    "note",
    [
        '{"phase": "train", "done": "x", "total": 3, "time": 1}',
        '{"phase": "train", "done": 1, "total": 0, "time": 1, "first": 0}',
        '{"phase": 5, "done": 1e400, "total": 3, "time": 1}',
        '{"done": 1',
        "[]",
    ],
)
def test_a_note_of_progress_that_is_none_spoils_no_page(
    note: str, sweep: Sweep, serve: Callable[[Path], View]
) -> None:
    key = last_stage(sweep, "0-lora")
    folder = sweep.store.folder(key)
    (folder / "result.json").unlink()
    (folder / "progress.json").write_text(note)
    lock = file_lock(folder / ".lock")
    lock.acquire()
    try:
        assert lease_of(folder / ".lock").is_file()
        view = serve(sweep.store.output_dir)
        assert "running" in plainly(view.get(f"/stages/{key}"))
        assert "In training now" in plainly(view.get("/sweeps/made"))
    finally:
        lock.release()


def test_a_stage_that_has_gone_is_said_to_be_none(
    sweep: Sweep, serve: Callable[[Path], View]
) -> None:
    got = serve(sweep.store.output_dir).get("/stages/0123456789abcdef")
    assert got.status == 404
    assert "There is no such stage here" in got.shown


def test_a_store_without_sweeps_says_so(tmp_path: Path, serve: Callable[[Path], View]) -> None:
    (tmp_path / "stages").mkdir()
    assert "There is no sweep here yet" in plainly(serve(tmp_path).get("/"))
