"""What jobs asked for and used, read from recorded accounts."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Plan, Run
from heft_pipeline.store.sweep_folders import Sweep
from launch.slurm.job_notes import JobNote, write_note
from launch.slurm.settings import megabytes
from launch.slurm.usage import show_usage, suggestions, sweep_usage
from tests.launch.slurm.conftest import Recorded

ROWS = """7_0|PREEMPTED|600|240|64000M||billing=1,cpu=1,gres/gpu=2,mem=64000M|1
7_0.batch|CANCELLED|600||| 1K|cpu=1|1
7_0|COMPLETED|1200|240|64000M||billing=1,cpu=1,gres/gpu=2,mem=64000M|1
7_0.0|COMPLETED|1200||64000M|2097152K|cpu=1,gres/gpu=2|1
7_1|RUNNING|30|240|64000M||cpu=1,gres/gpu=2|1
7_2|COMPLETED|9999|240|64000M||cpu=1|1
"""


@pytest.fixture
def sweep(compose_run: Callable[..., Run], small: list[str], tmp_path: Path) -> Sweep:
    run = compose_run(*small, "method=lora")
    runs = [
        dataclasses.replace(
            run, name=f"r{seed}", stages=(dataclasses.replace(run.stages[0], seed=seed),)
        )
        for seed in range(2)
    ]
    made = Sweep(tmp_path / "out" / "sweeps" / "s")
    made.store.require_writable()
    made.record(Plan(tuple(runs)))
    for number, asked in enumerate(runs):
        made.store.begin(asked.last)
        write_note(made.store, asked.last.fingerprint, JobNote("s", 0.0, f"7_{number}"))
    return made


def test_runs_of_a_job_are_added_up(sweep: Sweep, recorded: Recorded) -> None:
    recorded.answers("sacct", ROWS.replace("| 1K|", "|1K|"))
    first, second = sweep_usage(sweep).values()
    assert (first.runs, first.seconds, first.longest) == (2, 1800, 1200)
    assert (first.asked_seconds, first.asked_megabytes, first.megabytes) == (14400, 64000, 2048)
    assert first.gpu_seconds == 3600
    assert (second.state, second.megabytes) == ("RUNNING", None)
    console = Console(record=True, width=120)
    show_usage(sweep, console)
    shown = console.export_text()
    assert "1.02 GPU hours" in shown
    assert "hydra.launcher.time=0:30:00 would do" in shown
    assert "hydra.launcher.mem=3G would do" in shown


def test_what_fits_is_not_remarked_on(sweep: Sweep, recorded: Recorded) -> None:
    recorded.answers("sacct", ROWS.replace("|240|", "|30|").replace("64000M", "4000M"))
    assert suggestions(list(sweep_usage(sweep).values())) == []


def test_without_accounts_one_message(sweep: Sweep, recorded: Recorded) -> None:
    recorded.answers("sacct", err="Slurm accounting storage is disabled", status=1)
    with pytest.raises(UserError, match=r"accounts do not answer \(Slurm accounting storage is"):
        sweep_usage(sweep)


def test_amounts_of_memory() -> None:
    texts = ("4000M", "4Gn", "1024K", "1048576", "", "x")
    assert [megabytes(text, bare="B") for text in texts] == [
        4000, 4096, 1, 1, None, None,
    ]  # fmt: skip
