"""Cancelling a sweep, and not what others wait for; statuses for programs; what is printed."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Plan, Run
from heft_pipeline.store.sweep_folders import Sweep
from launch import cancel
from launch.__main__ import main
from launch.cancel import cancel_sweep, is_cancelled, no_longer_cancelled
from launch.execute_plan import launcher_note
from launch.later import later
from launch.slurm.settings import SlurmSettings
from launch.slurm.submit import Terms, submit
from tests.launch.slurm.conftest import Simulated

SETTINGS = SlurmSettings()


@pytest.fixture
def two(
    compose_run: Callable[..., Run], small: list[str], simulated: Simulated, tmp_path: Path
) -> tuple[Sweep, Sweep]:
    """A sweep of a coarse and a fine stage, and one of the coarse stage alone."""
    run = compose_run(*small, "method=heft")
    coarse = compose_run(*small, "method=lora")
    sweeps = []
    for name, asked in (("a", run), ("b", coarse)):
        sweep = Sweep(tmp_path / "out" / "sweeps" / name)
        sweep.store.require_writable()
        sweep.record(Plan((asked,)), launcher=launcher_note(SETTINGS) | {"pid": None})
        submit(list(asked.stages), sweep, Terms(SETTINGS))
        sweeps.append(sweep)
    assert len(simulated.jobs) == 2
    return sweeps[0], sweeps[1]


def cancelled(sweep: Sweep, everything: bool = False) -> str:
    console = Console(record=True, width=200)
    cancel_sweep(sweep, everything, console)
    return console.export_text()


def test_a_job_that_another_sweep_waits_for_is_kept(
    two: tuple[Sweep, Sweep], simulated: Simulated
) -> None:
    a, b = two
    said = cancelled(a)
    assert "1 jobs cancelled" in said
    assert "1 jobs are kept" in said
    assert "(b)" in said
    assert list(simulated.alive) == ["1"]
    assert "1 jobs cancelled" in cancelled(b), "a, which submitted it, does not wait for it"
    assert not simulated.alive


def test_all_cancels_it_too(two: tuple[Sweep, Sweep], simulated: Simulated) -> None:
    assert "2 jobs cancelled" in cancelled(two[0], everything=True)
    assert not simulated.alive


def test_a_sweep_that_is_asked_for_again_is_no_longer_cancelled(
    two: tuple[Sweep, Sweep],
) -> None:
    a, _ = two
    cancelled(a)
    assert is_cancelled(a)
    no_longer_cancelled(a)
    assert not is_cancelled(a)


def test_while_slurm_is_silent_cancel_fails(
    two: tuple[Sweep, Sweep], simulated: Simulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancel, "_PATIENCE_SECONDS", 1.0)
    simulated.when("squeue", "silent")
    with pytest.raises(UserError, match=r"SLURM does not answer.*not known"):
        cancelled(two[0])
    assert not is_cancelled(two[0])
    assert len(simulated.alive) == 2


def test_statuses_for_programs(
    two: tuple[Sweep, Sweep], simulated: Simulated, capsys: pytest.CaptureFixture[str]
) -> None:
    a, _ = two
    simulated.end("1", "PREEMPTED")
    assert main(["status", "a", "--json", "--output-dir", str(a.store.output_dir)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["sweep"] == "a"
    assert [run["complete"] for run in said["runs"]] == [False]
    assert [stage["state"] for stage in said["stages"]] == ["preempted", "cancelled"]
    assert said["stages"][0]["job"] == "PREEMPTED, on n1"


@pytest.mark.parametrize("where", ["outputs", "else where"])
def test_a_command_for_later_works_where_it_is_pasted(
    two: tuple[Sweep, Sweep], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    (tmp_path / "out").rename(tmp_path / where)
    monkeypatch.chdir(tmp_path)
    sweep = Sweep(Path(where) / "sweeps" / "a")
    words = shlex.split(later(sweep, "status"))
    assert words[:3] == ["python", "-m", "launch"]
    assert ("--output-dir" in words) == (where != "outputs")
    assert main(words[3:]) == 0
