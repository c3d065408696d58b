"""The pages in a real browser: headless Chromium, at the width of a desktop and of a phone."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from heft_pipeline.files.locks import file_lock
from heft_pipeline.report import write_report
from heft_pipeline.store.sweep_folders import Sweep
from tests.report.made_sweeps import make_sweep
from tests.view.browser import CHROMIUM, Browser
from tests.view.conftest import View, last_stage

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

#: Tells what a reader would stumble over.
LOOK = Path(__file__).with_name("stumbles.js").read_text()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweep]:
    """A sweep with long names, runs in each state, a report, and a stage that is in training."""
    outputs = tmp_path_factory.mktemp("seen")
    name = "a-long-name-without-a-place-to-break-it-" + "x" * 60
    runs = [
        (f"method={method} epochs=2 seed={seed}", accuracy)
        for method, accuracy in (("lora", 0.7), ("reft", 0.6), ("heft", 0.75))
        for seed in (0, 1)
    ]
    extra = ["data.prompt='{passage}\\nQuestion: {question}? " + "x" * 300 + "\\nAnswer:'"]
    sweep = make_sweep(outputs, runs, name=name, extra=extra)
    write_report([sweep], sweep.folder)
    failed, running = last_stage(sweep, "3-reft"), last_stage(sweep, "5-heft")
    for key in (failed, running):
        (sweep.store.folder(key) / "result.json").unlink()
    sweep.store.fail(failed, {"reason": "a long reason " * 20 + "y" * 90, "time": 0.0})
    log = "\n".join(["a line of the log", "z" * 400] * 60)
    (sweep.store.folder(failed) / "stage.log").write_text(log)
    advance(sweep, 10)
    lock = file_lock(sweep.store.folder(running) / ".lock")
    lock.acquire()
    yield sweep
    lock.release()


def advance(sweep: Sweep, step: int) -> None:
    """Let the stage in training have come so far."""
    key = last_stage(sweep, "5-heft")
    lines = [
        {"event": "step", "step": n, "epoch": 1, "loss": 2 / n, "learning_rate": 1e-4 * n,
         "examples_per_second": 12.5}
        for n in range(1, step + 1)
    ]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (sweep.store.folder(key) / "metrics.jsonl").write_text(text)
    note = {"phase": "train", "done": step, "total": 1000, "note": ""}
    times = {"first": 0, "first_time": 1.0, "time": 2.0}
    sweep.store.note_progress(key, note | times)


@pytest.fixture(scope="module")
def view(sweep: Sweep, serve: Callable[[Path], View]) -> View:
    return serve(sweep.store.output_dir)


@pytest.fixture(scope="module", params=[(1280, False), (390, False), (1280, True), (390, True)])
def browser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    width, dark = request.param
    with Browser(tmp_path_factory.mktemp("profile"), width, dark=dark) as opened:
        opened.width, opened.dark = width, dark  # type: ignore[attr-defined]
        yield opened


@pytest.mark.parametrize("page", ["list", "sweep", "done", "failed", "running", "missing"])
def test_nothing_overflows_overlaps_complains_or_leaves_this_machine(
    page: str, browser: Any, view: View, sweep: Sweep
) -> None:
    stages = {"done": "4-heft", "failed": "3-reft", "running": "5-heft"}
    path = {"list": "", "sweep": f"sweeps/{sweep.name}", "missing": "sweeps/none"}.get(page)
    if path is None:
        path = f"stages/{last_stage(sweep, stages[page])}"
    browser.open(view.server.address + path)
    seen = json.loads(browser.value(LOOK))
    assert seen["wide"] == browser.width
    assert seen["scroll"] <= browser.width
    assert seen["past"] == []
    assert seen["clipped"] == []
    assert seen["over"] == []
    assert seen["pale"] == []
    assert seen["small"] == []
    dark = sum(map(int, seen["paper"][4:-1].split(", "))) < 200
    assert dark is browser.dark
    complaints = [one for one in browser.complaints if page != "missing" or "404" not in one]
    assert complaints == []
    assert browser.requested
    assert all(one.startswith(view.server.address) for one in browser.requested)


def test_the_report_is_shown_and_sorts_in_its_sandbox(
    browser: Any, view: View, sweep: Sweep
) -> None:
    browser.open(f"{view.server.address}sweeps/{sweep.name}/report.html")
    assert browser.complaints == []
    assert browser.value("window.origin") == "null"
    assert browser.value("document.images.length") > 3
    browser.value("[...document.images].forEach(i => i.loading = 'eager')")
    browser.until("[...document.images].every(i => i.complete && i.naturalWidth > 50)")
    assert browser.value("document.querySelectorAll('th button').length") > 5
    assert all(one.startswith((view.server.address, "data:")) for one in browser.requested)


def test_a_page_changes_by_itself_while_a_stage_is_trained(
    browser: Any, view: View, sweep: Sweep
) -> None:
    key = last_stage(sweep, "5-heft")
    advance(sweep, 20)
    browser.open(f"{view.server.address}stages/{key}")
    text = f"document.getElementById('progress-{key}').textContent"
    browser.until(f"{text}.includes('train 20/1000')")
    dots = "document.querySelectorAll('#curves circle').length"
    assert browser.value(dots) == 40
    browser.value("document.querySelector('h1').textContent = 'kept'")
    advance(sweep, 30)
    browser.until(f"{text}.includes('train 30/1000')")
    browser.until(f"{dots} === 60")
    assert browser.value(f"document.getElementById('bar-{key}').value") == pytest.approx(0.03)
    assert browser.value("document.querySelector('h1').textContent") == "kept", "no reload"
    assert browser.complaints == []


def test_the_runs_sort_by_a_heading(browser: Any, view: View, sweep: Sweep) -> None:
    browser.open(f"{view.server.address}sweeps/{sweep.name}")
    cells = "[...document.querySelectorAll('td[data-label=accuracy]')].map(e => e.textContent)"
    press = "[...document.querySelectorAll('th button')].find(b => b.textContent === 'accuracy')"
    before = browser.value(cells)
    browser.value(f"{press}.click()")
    after = browser.value(cells)
    assert after[0] == before[0], "the untouched model stays on top"
    known = [float(one[:-1]) for one in after[1:] if one]
    assert known == sorted(known)
    assert after != before


def test_a_page_says_when_the_view_has_ended(tmp_path: Path, sweep: Sweep) -> None:
    command = [sys.executable, "-m", "heft_pipeline.view", str(sweep.store.output_dir)]
    child = subprocess.Popen(
        [*command, "--no-browser"], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    assert child.stdout is not None
    address = re.search(r"http://[\d.:]+/", child.stdout.readline())
    assert address is not None
    with Browser(tmp_path / "profile", 1280) as browser:
        browser.open(address[0])
        child.kill()
        child.communicate()
        browser.until("!document.getElementById('notice').hidden")
        assert "The view has ended" in browser.value("document.body.innerText")
