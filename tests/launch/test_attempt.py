"""What one attempt at a stage notes: its progress, and why it failed."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from heft_pipeline.plan.graph import Run
from heft_pipeline.store import stage_folders
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.training.metrics import MetricsLog
from launch import attempt as module
from launch.attempt import attempt

ComposeRun = Callable[..., Run]


def test_speed_is_counted_from_the_first_step_of_a_phase(
    compose_run: ComposeRun, small: list[str], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ReFT stage fills its cache before it trains, in steps of another kind."""
    notes: list[dict[str, Any]] = []
    monkeypatch.setattr(module, "_NOTE_SECONDS", -1.0)
    monkeypatch.setattr(Store, "note_progress", lambda _, __, note: notes.append(note))
    stage = compose_run(*small, "method=reft", "epochs=2").last
    assert attempt(stage, store).status == "complete"
    phases = list(dict.fromkeys(note["phase"] for note in notes))
    assert phases == ["reuse", "train", "eval"]
    for phase in phases:
        noted = [note for note in notes if note["phase"] == phase]
        assert {note["first"] for note in noted} == {noted[0]["done"]}
        assert {note["first_time"] for note in noted} == {noted[0]["first_time"]}
    train = [note for note in notes if note["phase"] == "train"]
    assert train[0]["first"] == 1
    assert train[0]["first_time"] >= max(n["time"] for n in notes if n["phase"] == "reuse")


def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full/file")


def test_a_full_disk_fails_a_stage_with_its_reason(
    compose_run: ComposeRun, small: list[str], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = compose_run(*small, "method=lora", "epochs=1").last
    monkeypatch.setattr(MetricsLog, "write", refuse)
    tried = attempt(stage, store)
    assert tried.status == "failed"
    assert tried.text.startswith("/full/file: No space left on device; free some space there")
    assert (store.failure(stage.fingerprint) or {})["reason"] == tried.text
    monkeypatch.setattr(stage_folders, "write_json", refuse)
    tried = attempt(stage, store)
    assert tried.status == "failed"
    assert "nor could this be noted" in tried.text


def test_a_progress_note_that_cannot_be_written_stops_nothing(
    compose_run: ComposeRun, small: list[str], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_NOTE_SECONDS", -1.0)
    monkeypatch.setattr(Store, "note_progress", refuse)
    stage = compose_run(*small, "method=lora", "epochs=1").last
    assert attempt(stage, store).status == "complete"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("left", [0, 20, 60])
def test_a_disk_that_is_full_for_real_is_said_and_can_be_freed(
    compose_run: ComposeRun, small: list[str], small_disk: Path, left: int
) -> None:
    """However much room is left, in kB, the attempt ends and says why."""
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        file.write(b"x" * ((1000 - left) * 1024))
        try:
            while not left:
                file.write(b"x" * 1024)
        except OSError as error:
            assert error.errno == errno.ENOSPC
    store = Store(small_disk / "out")
    stage = compose_run(*small, "method=lora", "epochs=3").last
    tried = attempt(stage, store)
    assert tried.status == "failed"
    assert "No space left on device; free some space there" in tried.text
    assert "Traceback" not in tried.text
    filler.unlink()
    assert attempt(stage, store).status == "complete"
