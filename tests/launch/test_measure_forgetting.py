"""Forgetting in sweeps: refused before training, measured afterwards, kept apart by text."""

import dataclasses
import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from heft_pipeline.data.other_text import chosen_text, text_note
from heft_pipeline.files.sealed import read_sealed
from heft_pipeline.plan.graph import Run
from heft_pipeline.plan.stage_spec import to_json
from launch.__main__ import main as launch
from launch.slurm.jobs import StageJob
from tests.conftest import WORDS, CliResult

Cli = Callable[..., CliResult]
LORA = ["method=lora", "epochs=1"]


def made(path: Path, seed: int = 0, words: int = 700) -> Path:
    source = random.Random(seed)
    path.write_text(" ".join(source.choice(WORDS) for _ in range(words)))
    return path


def entries(output_dir: Path) -> dict[str, dict[str, Any]]:
    """What each stage's forgetting.json holds, by the stage's kind."""
    found = {}
    for path in output_dir.glob("stages/*/forgetting.json"):
        kind = json.loads((path.parent / "stage.json").read_text())["kind"]
        found[kind] = read_sealed(path).data or {}
    return found


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b" \n", "is empty"),
        (b"caf\xe9 " * 900, "is not UTF-8 text (byte 3)"),
        (b"w1 w2 w3", "has 3 tokens, and two windows need 254"),
        (b"strange words " * 200, "does not know 100% of the tokens"),
    ],
    ids=["missing", "empty", "latin-1", "short", "unreadable"],
)
def test_a_bad_file_is_refused_before_anything_is_trained(
    cli: Cli, small: list[str], tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    status, _, err = cli(*small, "-m", *LORA, f"report.forgetting={path}", "sweep=s")
    assert status == 1
    assert said in err
    assert "Traceback" not in err
    assert not list(tmp_path.glob("outputs/stages/*/metrics.jsonl"))


def test_a_dry_run_refuses_a_missing_file_too(cli: Cli, small: list[str], tmp_path: Path) -> None:
    asked = [*small, "-m", *LORA, f"report.forgetting={tmp_path / 'no.txt'}", "sweep=s"]
    status, _, err = cli(*asked, "hydra.launcher.dry_run=true", "hydra.launcher.dry_run_gpu=none")
    assert status == 1
    assert "cannot be read" in err


def test_runs_of_one_sweep_are_measured_on_one_text(
    cli: Cli, small: list[str], tmp_path: Path
) -> None:
    text = made(tmp_path / "text.txt")
    status, _, err = cli(*small, "-m", *LORA, f"report.forgetting=off,{text}", "sweep=s")
    assert status == 1
    assert "all runs of a sweep are measured on the same text" in err


@pytest.mark.parametrize("workers", [1, 2])
def test_stages_trained_earlier_are_measured_by_the_sweep_that_asks(
    cli: Cli, small: list[str], tmp_path: Path, workers: int
) -> None:
    asked = [*small, "-m", "epochs=1", f"hydra.launcher.workers={workers}"]
    status, out, err = cli(*asked, "method=lora", "report.forgetting=off", "sweep=before")
    assert status == 0, err
    assert not entries(tmp_path / "outputs")
    results = {p: p.read_bytes() for p in tmp_path.glob("outputs/stages/*/result.json")}
    asked += ["method=lora,heft", f"report.forgetting={made(tmp_path / 'text.txt')}", "sweep=now"]
    status, out, err = cli(*asked)
    assert status == 0, err
    assert "forgetting measured for 2 stages that had been trained before" in out
    found = entries(tmp_path / "outputs")
    assert set(found) == {"base", "lora", "reft"}
    (digest,) = {digest for one in found.values() for digest in one}
    assert all(len(one[digest]["losses"]) == 5 for one in found.values())
    assert all(path.read_bytes() == before for path, before in results.items())
    status, out, err = cli(*asked)
    assert "measured" not in out, "nothing is measured twice"


def test_a_text_that_ships_and_that_the_model_cannot_read_refuses_nothing(
    cli: Cli, small: list[str], tmp_path: Path
) -> None:
    status, _, err = cli(*small, "-m", *LORA, "sweep=s")
    assert status == 0, err
    (entry,) = entries(tmp_path / "outputs")["lora"].values()
    assert "does not know 100% of the tokens of everyday_english.txt" in entry["why"]


def test_a_finished_sweep_is_measured_on_another_text_and_keeps_both(
    cli: Cli, small: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = made(tmp_path / "one.txt", 1), made(tmp_path / "two.txt", 2)
    status, _, err = cli(*small, "-m", *LORA, f"report.forgetting={first}", "sweep=s")
    assert status == 0, err
    where = ["--output-dir", str(tmp_path / "outputs")]
    assert launch(["forgetting", "s", "--text", str(second), *where]) == 0
    for kind, found in entries(tmp_path / "outputs").items():
        assert {entry["text"] for entry in found.values()} == {"one.txt", "two.txt"}, kind
    plan = json.loads((tmp_path / "outputs/sweeps/s/plan.json").read_text())
    assert plan["forgetting"]["name"] == "two.txt", "the report shows the text asked for last"
    capfd.readouterr()
    short = made(tmp_path / "short.txt", words=5)
    assert launch(["forgetting", "s", "--text", str(short), *where]) == 1
    assert "two windows need 254" in capfd.readouterr().err
    plan = json.loads((tmp_path / "outputs/sweeps/s/plan.json").read_text())
    assert plan["forgetting"]["name"] == "two.txt"


def test_a_sweep_that_measures_nothing_needs_a_text(
    cli: Cli, small: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli(*small, "-m", *LORA, "report.forgetting=off", "sweep=s")[0] == 0
    assert launch(["forgetting", "s", "--output-dir", str(tmp_path / "outputs")]) == 1
    assert "names no text to measure forgetting on; give --text FILE" in capfd.readouterr().err


def test_a_slurm_job_measures_its_own_stage(
    compose_run: Callable[..., Run],
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The job as submitit pickles it, run here; tests on a real SLURM are in test_slurm.py."""
    alone = SimpleNamespace(num_tasks=1, global_rank=0)
    monkeypatch.setattr("submitit.JobEnvironment", lambda: alone)
    stage = compose_run(*small, "method.stages=[]").last
    text = chosen_text(text_note(str(made(tmp_path / "text.txt"))), stage.model.id)
    assert text is not None
    job = StageJob(to_json(stage), str(tmp_path / "out"), text=dataclasses.asdict(text))
    pickle.loads(pickle.dumps(job))()
    (entry,) = entries(tmp_path / "out")["base"].values()
    assert len(entry["losses"]) == 5
