"""The pages of the local web view, through real requests."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import pytest

from heft_pipeline.report import write_report
from heft_pipeline.store.sweep_folders import Sweep
from heft_pipeline.view.__main__ import main
from tests.report.made_sweeps import make_sweep
from tests.view.conftest import View, last_stage

ROOT = Path(__file__).parents[2]


def test_the_list_says_how_far_each_sweep_is_and_which_run_is_best(view: View) -> None:
    page = view.get("/")
    assert page.status == 200
    assert "made" in page.shown
    assert "on demo" in page.shown
    assert re.search(r"2 of 4\s+1 1", page.shown) is None  # the cells are those of the headings:
    cells = re.search(r'data-label="done".*?</tr>', page.text, re.DOTALL)
    assert cells is not None
    numbers = re.findall(r'<span id="([a-z ]+)-\w+">([^<]*)</span>', cells[0])
    assert dict(numbers) == {
        "done": "2", "running": "0", "failed": "1", "to do": "1", "best": "75.0%", "of": "2-heft"
    }  # fmt: skip
    assert 'href="/sweeps/made"' in page.text
    assert "not yet" in page.shown


def test_a_sweep_shows_its_runs_with_intervals_costs_and_links_to_stages(
    view: View, made: Sweep
) -> None:
    page = view.get("/sweeps/made")
    assert page.status == 200
    row = re.search(r'<tr id="run-\d+"[^>]*><td[^>]*>2-heft</td>.*?</tr>', page.text, re.DOTALL)
    assert row is not None
    cells = dict(re.findall(r'data-label="([^"]+)">(.*?)</td>', row[0], re.DOTALL))
    assert cells["method"] == "heft"
    assert cells["epochs"] == "2 (4)"
    assert cells["accuracy"] == "75.0%"
    low, high = map(float, cells["95 % interval"].split("-"))
    assert low < 75 < high
    assert cells["trainable parameters"] == "2,000"
    assert cells["train seconds"] == "8.0"
    assert cells["TFLOP"] == "0.4"
    assert "done" in cells["status"]
    for key in next(run for run in made.plan()["runs"] if run["name"] == "2-heft")["stages"]:
        assert f'href="/stages/{key}"' in cells["stages"]
    assert "the loss is not finite" in page.shown
    assert "to do" in page.shown
    assert "untouched model" in page.shown


def test_a_stage_shows_its_settings_parents_sweeps_curves_and_predictions(
    view: View, made: Sweep
) -> None:
    key = last_stage(made, "2-heft")
    page = view.get(f"/stages/{key}")
    assert page.status == 200
    parent = next(run for run in made.plan()["runs"] if run["name"] == "2-heft")["stages"][0]
    assert f'href="/stages/{parent}"' in page.text
    assert "made : 2-heft" in page.shown or "made: 2-heft" in page.shown
    assert "learning_rate" in page.shown
    assert "{passage}" in page.shown
    drawings = re.findall(r"<svg.*?</svg>", page.text, re.DOTALL)
    assert len(drawings) == 2
    assert all(">step</text>" in drawing and "<polyline" in drawing for drawing in drawings)
    assert "dev accuracy (%)" in page.shown
    assert "loss (nats)" in page.shown
    assert page.text.count('class="choice') >= 100
    assert "\N{MINUS SIGN}0." in page.shown


def test_a_log_is_shown_with_its_escapes_made_harmless(view: View, made: Sweep) -> None:
    page = view.get(f"/stages/{last_stage(made, '1-reft')}")
    assert "\N{SYMBOL FOR ESCAPE}[31mred" in page.text
    assert "\x1b" not in page.text
    assert "\x07" not in page.text
    assert "the loss is not finite" in page.shown


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path, serve: Callable[[Path], View]) -> None:
    sweep = make_sweep(tmp_path, [("method=lora epochs=1", 0.6)])
    key = sweep.plan()["runs"][0]["stages"][0]
    lines = "".join(f"line {number} of many\n" for number in range(40_000))
    (sweep.store.folder(key) / "stage.log").write_text(lines)
    page = serve(tmp_path).get(f"/stages/{key}")
    assert "line 39999 of many" in page.text
    assert "line 100 of many" not in page.text
    assert "stage.log has the rest" in page.text
    assert len(page.text) < 300_000


def test_a_report_is_served_as_it_is_in_a_sandbox_with_its_figures(
    tmp_path: Path, serve: Callable[[Path], View]
) -> None:
    sweep = make_sweep(tmp_path, [("method=lora epochs=1", 0.6), ("method=heft epochs=1", 0.7)])
    view = serve(tmp_path)
    assert view.get("/sweeps/made/report.html").status == 404
    write_report([sweep], sweep.folder)
    got = view.get("/sweeps/made/report.html")
    assert got.text == (sweep.folder / "report.html").read_text()
    policy = got.headers["content-security-policy"]
    assert "sandbox allow-scripts allow-downloads" in policy
    assert "default-src 'none'" in policy
    assert "allow-same-origin" not in policy
    figure = next((sweep.folder / "figures").glob("*.svg")).name
    got = view.get(f"/sweeps/made/figures/{figure}")
    assert got.status == 200
    assert got.headers["content-type"].startswith("image/svg+xml")
    assert "script-src" not in got.headers["content-security-policy"]
    assert 'href="/sweeps/made/report.html"' in view.get("/").text


def test_every_answer_forbids_what_is_not_its_own(view: View, made: Sweep) -> None:
    for path in ("/", "/sweeps/made", f"/stages/{last_stage(made, '2-heft')}", "/look/view.css",
                 "/look/live.js", "/live/sweeps", "/nothing"):  # fmt: skip
        got = view.get(path)
        policy = got.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert got.headers["x-content-type-options"] == "nosniff"
        assert got.headers["cache-control"] == "no-store"
        assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=", got.text)
        for link in re.findall(r'(?:src|href)="([^"]*)"', got.text):
            assert link.startswith(("/", "?", "#")) and not link.startswith("//")


def test_programs_read_what_changes_as_json(view: View, made: Sweep) -> None:
    for path in ("/live/sweeps", "/live/sweeps/made", f"/live/stages/{last_stage(made, '2-heft')}"):
        got = view.get(path)
        assert got.headers["content-type"].startswith("application/json")
        assert set(json.loads(got.text)) == {"texts", "bars", "state"}


def test_head_has_no_body(view: View) -> None:
    got = view.get("/", method="HEAD")
    assert got.status == 200
    assert got.text == ""
    assert int(got.headers["content-length"]) > 500


def test_looking_writes_nothing(tmp_path: Path, serve: Callable[[Path], View]) -> None:
    sweep = make_sweep(tmp_path, [("method=lora epochs=1", 0.6)])

    def seen() -> dict[str, int]:
        return {str(path): path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}

    before, view = seen(), serve(tmp_path)
    key = sweep.plan()["runs"][0]["stages"][0]
    for path in ("/", "/sweeps/made", f"/stages/{key}", "/live/sweeps/made", "/sweeps/none"):
        view.get(path)
    assert seen() == before


def test_the_command_says_its_address_and_ends_with_ctrl_c(made: Sweep) -> None:
    outputs = made.store.output_dir
    environment = {name: v for name, v in os.environ.items() if name != "SSH_CONNECTION"}
    child = subprocess.Popen(
        [sys.executable, "-m", "heft_pipeline.view", str(outputs), "--no-browser"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert child.stdout is not None
    said = child.stdout.readline()
    address = re.search(r"http://127\.0\.0\.1:\d+/", said)
    assert address is not None
    with urlopen(address[0], timeout=60) as answer:
        assert answer.status == 200
    child.send_signal(2)
    rest = child.communicate(timeout=30)[0]
    assert rest == "The view has ended.\n"
    assert child.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["OUT", "--port", "70000"], "--port 70000: give a number from 0 to 65535"),
        (["NOWHERE"], "holds no stages; give the output_dir of a sweep"),
    ],
)
def test_what_cannot_be_shown_is_one_message(
    arguments: list[str], said: str, made: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"OUT": str(made.store.output_dir), "NOWHERE": str(tmp_path)}
    assert main([places.get(one, one) for one in arguments]) == 1
    assert said in capsys.readouterr().err


def test_a_port_that_is_taken_is_one_message(
    view: View, made: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(made.store.output_dir), "--port", str(view.port)]) == 1
    assert f"port {view.port} of this machine cannot be used" in capsys.readouterr().err
