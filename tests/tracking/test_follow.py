"""Which runs are shown while stages are trained, and how the process that does so is ended."""

import io
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from heft_pipeline.store.sweep_folders import Sweep
from heft_pipeline.tracking import follow, send
from heft_pipeline.tracking.backend import Unreachable
from heft_pipeline.tracking.follow import Event, Sender
from heft_pipeline.tracking.payload import TrackedRun
from launch import tracker as beside
from tests.tracking.conftest import HEFT, LORA, stage_folders


class Recorder:
    """A tracker that notes what it is asked."""

    name, live = "recorder", True
    target: Mapping[str, Any] = {"mode": "online"}

    def __init__(self) -> None:
        self.lines: dict[str, list[int]] = {}
        self.finished: dict[str, str] = {}
        self.reachable = True
        self.asked = 0

    def see(self, sweep: Path, where: str) -> str:
        return f" {where}"

    def open(self, run: TrackedRun, folder: Path) -> "RecorderWriter":
        self.asked += 1
        if not self.reachable:
            raise Unreachable("nobody is there")
        return RecorderWriter(self, run.name)

    def still_has(self, note: Mapping[str, Any]) -> bool:
        return True


class RecorderWriter:
    def __init__(self, recorder: Recorder, name: str) -> None:
        self._recorder, self._name = recorder, name
        self.next_line = len(recorder.lines.setdefault(name, []))

    def log(self, number: int, values: Mapping[str, float]) -> None:
        self._recorder.lines[self._name].append(number)
        self.next_line = number + 1

    def flush(self) -> None:
        pass

    def finish(self, run: TrackedRun) -> str:
        self._recorder.finished[run.name] = run.status
        return "there"


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(follow, "make_backend", lambda _: recorder)
    return recorder


class Looks(threading.Event):
    """Ends following after some looks at the files; between two, it lets something happen."""

    def __init__(self, *between: Any) -> None:
        super().__init__()
        self._between = list(between)

    def wait(self, timeout: float | None = None) -> bool:
        if not self._between:
            return True
        self._between.pop(0)()
        return False


def hide(path: Path) -> None:
    path.rename(path.with_name(f"hidden.{path.name}"))


def show(path: Path) -> None:
    path.with_name(f"hidden.{path.name}").rename(path)


def test_a_stage_at_work_is_shown_in_the_first_run_that_stands_on_it_alone(
    sweep: Path, recorder: Recorder
) -> None:
    lora, reft = stage_folders(sweep, HEFT)
    for path in (lora / "result.json", reft / "result.json", reft / "metrics.jsonl"):
        hide(path)
    seen: list[dict[str, int]] = []

    def note() -> None:
        seen.append({name: len(lines) for name, lines in recorder.lines.items()})

    def coarse_ends() -> None:
        note()
        show(lora / "result.json")

    def fine_begins() -> None:
        note()
        show(reft / "metrics.jsonl")

    events: list[Event] = []
    looks = Looks(note, coarse_ends, fine_begins, note, note)
    Sender(Sweep(sweep), events.append).follow(looks, 0)
    coarse = seen[1][LORA]
    assert coarse > 10
    assert HEFT not in seen[1], "its own stage has not begun"
    assert recorder.finished[LORA] == "complete"
    assert seen[4][HEFT] > coarse, "it opens with the reused stage's whole curve"
    assert recorder.finished[HEFT] == "incomplete"
    for numbers in recorder.lines.values():
        assert numbers == list(range(len(numbers)))
    assert [(e.run, e.status) for e in events] == [
        (LORA, "open"),
        (LORA, "sent"),
        (HEFT, "open"),
        (HEFT, "sent"),
    ]


def test_a_tracker_that_cannot_be_reached_is_tried_once_and_not_for_each_run(
    sweep: Path, recorder: Recorder
) -> None:
    recorder.reachable = False
    events: list[Event] = []
    Sender(Sweep(sweep), events.append).follow(Looks(lambda: None, lambda: None), 0)
    assert recorder.asked == 1
    assert {(e.run, e.status, e.text) for e in events} == {
        (LORA, "problem", "nobody is there"),
        (HEFT, "problem", "nobody is there"),
    }


def test_a_run_is_sent_by_one_process_at_a_time(sweep: Path, recorder: Recorder) -> None:
    events: list[Event] = []
    sender = Sender(Sweep(sweep), events.append, only=LORA)
    lock = send.file_lock(sweep / "runs" / LORA / ".tracking.lock")
    with lock:
        sender.send_all()
    assert [(e.status, e.text) for e in events] == [("problem", "another process is sending it")]
    assert not recorder.lines


def test_a_sender_without_a_sign_is_ended_with_all_that_it_started(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = tmp_path / "stuck"
    stuck.write_text(f"#!/bin/sh\nsleep 300 &\necho $! > {tmp_path}/pid\nwait\n")
    stuck.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stuck))
    monkeypatch.setattr(Sweep, "plan", lambda _: {"tracking": {"finish_seconds": 1}})
    said = io.StringIO()
    started = time.monotonic()
    with beside.tracked(Sweep(sweep), Console(file=said, width=80)):
        while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)
    assert time.monotonic() - started < 20
    assert "gave no sign for 1 s" in said.getvalue()
    assert f"python -m heft_pipeline.tracking {sweep}" in said.getvalue()
    child = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def test_leaving_the_sender_with_ctrl_c_leaves_the_sweep_as_it_is(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: beside.Tracker) -> bool:
        raise KeyboardInterrupt

    stuck = tmp_path / "stuck"
    stuck.write_text("#!/bin/sh\nexec sleep 300\n")
    stuck.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stuck))
    monkeypatch.setattr(Sweep, "plan", lambda _: {"tracking": {"finish_seconds": 60}})
    monkeypatch.setattr(beside.Tracker, "_take_news", interrupted)
    said = io.StringIO()
    with beside.tracked(Sweep(sweep), Console(file=said, width=80)):
        pass
    assert "was ended before it had sent everything" in said.getvalue()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]
