"""The numbers of a stage that another process trains, as they change."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from heft_pipeline.store.sweep_folders import Sweep
from tests.view.conftest import View

ROOT = Path(__file__).parents[2]
#: Far longer than it takes to begin, on any machine.
_PATIENCE_SECONDS = 240.0


@pytest.fixture
def training(tmp_path: Path, small: list[str]) -> Iterator[Path]:
    """The store of a sweep that is in training for longer than the test takes."""
    outputs = tmp_path / "outputs"
    command = [sys.executable, "-m", "heft_pipeline", *small, "method=lora", "epochs=400",
               "sweep=long", f"output_dir={outputs}"]  # fmt: skip
    with (tmp_path / "said.txt").open("w") as said:
        child = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said, env=os.environ)
    try:
        yield outputs
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()


def until(what: Callable[[], Any]) -> Any:
    """What a function gives as soon as that is something."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.1)
    raise AssertionError("it took too long")


def test_progress_changes_while_another_process_trains(
    training: Path, serve: Callable[[Path], View]
) -> None:
    until((training / "sweeps" / "long" / "plan.json").is_file)
    until((training / "stages").is_dir)
    view = serve(training)

    def live(path: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(view.get(f"/live/{path}").text)
        return found

    def counts() -> dict[str, str]:
        return {key.split("-")[0]: text for key, text in live("sweeps")["texts"].items()}

    until(lambda: counts()["running"] == "1")
    assert counts()["to do"] == "0"
    key = Sweep(training / "sweeps" / "long").plan()["runs"][0]["stages"][0]

    def step() -> int:
        said = live(f"stages/{key}")["texts"][f"progress-{key}"]
        found = re.match(r"train (\d+)/\d+", said)
        return int(found[1]) if found else 0

    first = until(step)
    later = until(lambda: (now := step()) > first and now)
    assert later > first
    texts = until(lambda: (t := live("sweeps/long")["texts"])[f"loss-{key}"] != "\N{EN DASH}" and t)
    assert float(texts[f"loss-{key}"]) > 0
    assert texts[f"speed-{key}"].endswith("/s")
    assert re.fullmatch(r"\d+:\d\d:\d\d", texts[f"left-{key}"])
    bars = live("sweeps/long")["bars"]
    assert 0 < bars[f"bar-{key}"] < 1
    accuracy = until(
        lambda: (t := live(f"stages/{key}")["texts"][f"dev-{key}"]) != "\N{EN DASH}" and t
    )
    assert accuracy.endswith("%")
    page = view.get("/sweeps/long")
    assert "In training now" in page.shown
    assert f'<progress id="bar-{key}"' in page.text
    drawn = view.get(f"/stages/{key}").text.count("<circle")
    state = live(f"stages/{key}")["state"]
    until(lambda: live(f"stages/{key}")["state"] != state)
    assert "<svg" in view.get(f"/stages/{key}").text
    assert drawn >= 0
