"""What a terminal shows while a sweep runs, and what a file gets instead."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from heft_pipeline.plan.stage_spec import StageSpec
from launch.live_display import Overview, Running, duration, fitting
from launch.progress import StageProgress
from tests.conftest import composed_run


@pytest.fixture(scope="module")
def stages(small: list[str]) -> list[StageSpec]:
    run = composed_run(*small, "method=heft", "epochs=3")
    other = composed_run(*small, "method=lora", "epochs=3", "seed=1")
    return [*run.stages, other.last]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def drawn(overview: Overview, width: int) -> list[str]:
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(overview)
    return [line.rstrip() for line in capture.get().splitlines()]


def half_way(stages: list[StageSpec], clock: list[float]) -> Overview:
    """One stage done, one running, one to do."""
    lora, reft, other = stages
    overview = Overview(stages)
    overview.begin(lora, "lora@3 r8 s0", "1/3")
    for step in range(0, 31, 10):
        overview.show(lora.fingerprint, "train", step, 30, "loss 0.5")
        clock[0] += 1
    overview.show(lora.fingerprint, "eval", 0, 50, "")
    overview.end(lora.fingerprint, "done", "lora@3 r8 s0", 0.875)
    overview.begin(reft, "lora@3 > reft@3 r8 s0", "2/3")
    overview.show(reft.fingerprint, "train", 0, 30, "")
    clock[0] += 5
    overview.show(reft.fingerprint, "train", 15, 30, "dev 91.2%")
    overview.show(reft.fingerprint, "train", 15, 30, "loss 0.123")
    assert other.fingerprint not in overview.running
    return overview


def test_it_says_how_far_the_sweep_is(stages: list[StageSpec], clock: list[float]) -> None:
    counts, best, name, what = drawn(half_way(stages, clock), 80)
    # LoRA took 4 s for three epochs, as the third stage will; the second goes on for 5.
    assert counts == "1 of 3 stages done · 1 running · 1 to do · about 9 s left"
    assert best == "best so far 87.5%: lora@3 r8 s0"
    assert name == "2/3 lora@3 > reft@3 r8 s0"
    size = stages[1].adapters[0].batch_size
    speed = f"{3 * size:,.0f} ex/s"
    parts = re.split(r"  +", what.strip())
    assert parts[0].split(" ") == ["train", "━━━━━━──────", "50%"]
    assert parts[1:] == ["epoch 2/3", "5 s left", "loss 0.123", "dev 91.2%", speed]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_no_line_is_wider_than_the_terminal(
    width: int, stages: list[StageSpec], clock: list[float]
) -> None:
    overview = half_way(stages, clock)
    overview.begin(stages[2], "日本" * 60, "3/3")
    lines = drawn(overview, width)
    assert len(lines) == 6  # nothing is wrapped
    from rich.cells import cell_len

    assert max(map(cell_len, lines)) <= width
    assert "1 of 3 stages do" in lines[0]


def test_words_are_left_out_whole() -> None:
    assert fitting(["one", "two", "three"], 9) == "one  two"
    assert fitting(["one", "twotwotwo", "3"], 9) == "one  3"
    assert fitting(["onetwothree"], 6) == "onetw…"
    assert [duration(s) for s in (5, 99, 600, 7200)] == ["5 s", "99 s", "10 min", "2.0 h"]


def test_what_is_not_known_is_not_said(stages: list[StageSpec], clock: list[float]) -> None:
    overview = Overview(stages)
    assert overview.seconds_left(clock[0]) is None
    running = Running(stages[0], "a", "1/3")
    assert running.per_second(clock[0]) is None and running.examples_per_second(clock[0]) is None
    overview.begin(stages[0], "a", "1/3")
    overview.end(stages[0].fingerprint, "again", "a", None)
    assert drawn(overview, 80) == ["0 of 3 stages done · 0 running · 3 to do"]
    overview.begin(stages[0], "a", "1/3")
    overview.end(stages[0].fingerprint, "failed", "a", None)
    assert drawn(overview, 80) == ["0 of 3 stages done · 1 failed · 0 running · 2 to do"]


def test_a_file_gets_plain_lines_now_and_then(
    stages: list[StageSpec], clock: list[float], tmp_path: Path
) -> None:
    with (tmp_path / "out").open("w") as file:
        shown = StageProgress(Console(file=file, width=80), stages)
        with shown:
            shown.begin(stages[0])
            for step in range(10):
                clock[0] += 10
                shown.of(stages[0])("train", step, 20, "loss 0.5")
            shown.say("[green]✓[/]", "done")
    text = (tmp_path / "out").read_text()
    assert "\x1b" not in text and "\r" not in text
    lines = text.splitlines()
    assert len(lines) == 2 and lines[-1] == "✓ done"
    assert "train" in lines[0] and "loss 0.5" in lines[0]


def in_terminal(command: list[str], width: int, **environment: str) -> tuple[int, str]:
    """Run a command in a terminal of its own; returns its status and all that it wrote."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=follower, close_fds=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": str(width), "LINES": "24", **environment},
    )  # fmt: skip
    os.close(follower)
    written = b""
    while process.poll() is None or select.select([leader], [], [], 0)[0]:
        if select.select([leader], [], [], 0.1)[0]:
            try:
                written += os.read(leader, 65536)
            except OSError:
                break
    os.close(leader)
    return process.wait(), written.decode(errors="replace")


def sweep(small: list[str], to: Path) -> list[str]:
    return [
        sys.executable, "-m", "heft_pipeline", "-m", *small, "method=lora,reft", "epochs=1",
        "report.forgetting=off", f"output_dir={to}", "sweep=s",
    ]  # fmt: skip


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_is_left_as_it_was(
    environment: dict[str, str], small: list[str], tmp_path: Path
) -> None:
    status, text = in_terminal(sweep(small, tmp_path), 80, **environment)
    assert status == 0, text
    if environment.get("TERM") == "dumb":
        assert "to do" not in text and "\x1b[?25l" not in text
        return
    assert "of 3 stages done" in text and "running" in text
    # The cursor is shown again, after the display was last drawn.
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "to do" not in text[text.rindex("\x1b[?25h") :]
    colours = re.findall(r"\x1b\[(?:[0-9;]*)m", text)
    styled = [one for one in colours if re.search(r"\b(3[0-7]|9[0-7]|38;)", one)]
    assert bool(styled) != bool(environment)
