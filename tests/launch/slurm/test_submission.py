"""Submissions that are cut off between any two steps, and that meet others."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Plan, Run
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.store.sweep_folders import Sweep
from launch.slurm import job_notes, job_states, submit
from launch.slurm.ask import Patience
from launch.slurm.job_notes import read_note, read_report_note
from launch.slurm.recover import Again
from launch.slurm.report_job import submit_report
from launch.slurm.sbatch import Submission
from launch.slurm.settings import SlurmSettings
from launch.slurm.submit import Stopped, Terms
from tests.launch.slurm.conftest import CONFIG, Simulated

ComposeRun = Callable[..., Run]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    made = Sweep(tmp_path / "out" / "sweeps" / "s")
    made.store.require_writable()
    return made


@pytest.fixture
def stages(compose_run: ComposeRun, small: list[str]) -> list[StageSpec]:
    """Three coarse stages, and a fine one on the first two."""
    run = compose_run(*small, "method=heft")
    coarse = [dataclasses.replace(run.stages[0], seed=seed) for seed in range(3)]
    fine = [dataclasses.replace(run.stages[1], seed=n, parent=coarse[n]) for n in range(2)]
    return [*coarse, *fine]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of sbatch that is not found is taken for not made, without waiting."""
    monkeypatch.setattr(job_states, "SETTLE_SECONDS", 0.0)


def terms(**given: object) -> Terms:
    settings = SlurmSettings(**given)  # type: ignore[arg-type]
    return Terms(settings, patience=Patience(1.0))


def keys(stages: list[StageSpec]) -> set[str]:
    return {stage.fingerprint for stage in stages}


def assert_each_stage_has_one_job(
    simulated: Simulated, sweep: Sweep, stages: list[StageSpec]
) -> None:
    alive = simulated.alive
    assert len(alive) == len(stages), "nothing is lost, and nothing is submitted twice"
    noted = {s.fingerprint: read_note(sweep.store, s.fingerprint) for s in stages}
    assert {note.job_id for note in noted.values() if note} == set(alive)
    for stage in stages:
        note = noted[stage.fingerprint]
        assert note is not None
        parent = noted.get(stage.parent.fingerprint) if stage.parent else None
        wanted = f"afterok:{parent.job_id}" if parent else ""
        assert alive[str(note.job_id)]["after"] == wanted


def test_stages_are_submitted_once(
    simulated: Simulated, sweep: Sweep, stages: list[StageSpec]
) -> None:
    jobs, new = submit.submit(stages, sweep, terms())
    assert set(jobs) == set(new) == keys(stages)
    assert_each_stage_has_one_job(simulated, sweep, stages)
    assert submit.submit(stages, sweep, terms()) == (jobs, [])
    assert_each_stage_has_one_job(simulated, sweep, stages)


class Cut(BaseException):
    """What cuts a submission off: nothing may catch it."""


def cut_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off before the given step, counting what is written, begun and called."""
    count = 0

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def called(*arguments: object, **named: object) -> object:
            nonlocal count
            for moment in ("before", "after"):
                if count == step:
                    count += 1
                    raise Cut(f"{moment} {real.__name__}")
                count += 1
                if moment == "before":
                    result = real(*arguments, **named)
            return result

        return called

    monkeypatch.setattr(submit, "write_note", counted(job_notes.write_note))
    monkeypatch.setattr(submit, "stage_submission", counted(submit.stage_submission))
    monkeypatch.setattr(Submission, "sbatch", counted(Submission.sbatch))
    monkeypatch.setattr(Store, "begin", counted(Store.begin))


def test_a_submission_that_is_cut_off_anywhere_is_gone_on_with(
    simulated: Simulated,
    sweep: Sweep,
    stages: list[StageSpec],
    monkeypatch: pytest.MonkeyPatch,
    at_once: None,
) -> None:
    few, step, cuts = [stages[0], stages[1], stages[3]], 0, set()
    while True:
        for stage in few:
            job_notes.remove_note(sweep.store, stage.fingerprint)
        simulated.jobs = {}
        with monkeypatch.context() as patch:
            cut_at(step, patch)
            try:
                submit.submit(few, sweep, terms())
            except Cut as cut:
                cuts.add(str(cut))
            else:
                break
        submit.submit(few, sweep, terms())
        assert_each_stage_has_one_job(simulated, sweep, few)
        step += 1
    assert step > 20
    assert {"before sbatch", "after sbatch", "before write_note", "after write_note"} <= cuts


_SUBMIT = """
import pickle, sys
from pathlib import Path
from heft_pipeline.store.sweep_folders import Sweep
from launch.slurm.settings import SlurmSettings
from launch.slurm.submit import Terms, submit, submit_lock
stages = pickle.loads(Path(sys.argv[1]).read_bytes())
sweep = Sweep(Path(sys.argv[2]))
with submit_lock(sweep.store, lambda text: print(text, flush=True)):
    jobs, new = submit(stages, sweep, Terms(SlurmSettings()))
print(len(new), "new", flush=True)
"""


def submitting(sweep: Sweep, stages: list[StageSpec], tmp_path: Path) -> "subprocess.Popen[str]":
    import pickle

    path = tmp_path / "stages.pkl"
    path.write_bytes(pickle.dumps(stages))
    return subprocess.Popen(
        [sys.executable, "-c", _SUBMIT, str(path), str(sweep.folder)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("moment", ["hangs", "slow"])
def test_kill_9_inside_the_call_of_sbatch(
    simulated: Simulated,
    sweep: Sweep,
    stages: list[StageSpec],
    tmp_path: Path,
    at_once: None,
    moment: str,
) -> None:
    """Before the job stands (``hangs``), and after it stands but before sbatch has said so."""
    simulated.when("sbatch", f"{moment} once")
    process = submitting(sweep, stages, tmp_path)
    hanging = simulated.folder / "sbatch.hanging"
    deadline = time.monotonic() + 60
    while not hanging.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(simulated.jobs) == (3 if moment == "slow" else 0)
    submit.submit(stages, sweep, terms())
    assert_each_stage_has_one_job(simulated, sweep, stages)


def test_two_submitters_at_once(
    simulated: Simulated, sweep: Sweep, stages: list[StageSpec], tmp_path: Path
) -> None:
    both = [submitting(sweep, stages, tmp_path) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert sorted(text.split("\n")[-2] for text in said) == ["0 new", "5 new"], said
    assert_each_stage_has_one_job(simulated, sweep, stages)


def test_an_answer_that_is_lost_is_looked_for(
    simulated: Simulated, sweep: Sweep, stages: list[StageSpec], at_once: None
) -> None:
    for lost in ("silent-after once", "silent once"):
        simulated.when("sbatch", lost)
        submit.submit(stages[:2], sweep, terms())
        assert_each_stage_has_one_job(simulated, sweep, stages[:2])
        simulated.jobs = {}


def test_while_slurm_is_silent_nothing_is_submitted(
    simulated: Simulated, sweep: Sweep, stages: list[StageSpec]
) -> None:
    submit.submit(stages[:2], sweep, terms())
    simulated.when("squeue", "silent")
    with pytest.raises(UserError, match=r"is not known.*nothing is submitted"):
        submit.submit(stages, sweep, terms())
    assert len(simulated.jobs) == 2


def test_a_refusal_leaves_nothing_behind(
    simulated: Simulated, sweep: Sweep, stages: list[StageSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Submission.sbatch, 0

    def second_refused(call: Submission) -> str:
        nonlocal calls
        calls += 1
        if calls == 2:
            simulated.when("sbatch", "refuses once")
        return real(call)

    monkeypatch.setattr(Submission, "sbatch", second_refused)
    with pytest.raises(UserError, match=r"Invalid account(.|\n)*3 jobs .* are cancelled"):
        submit.submit(stages, sweep, terms())
    assert not simulated.alive
    assert read_note(sweep.store, stages[3].fingerprint) is None


def test_ctrl_c_while_submitting_cancels_what_stands(
    simulated: Simulated, sweep: Sweep, stages: list[StageSpec]
) -> None:
    asked = terms()
    asked.should_stop = lambda: bool(simulated.jobs)
    with pytest.raises(Stopped, match="3 jobs that were submitted before it are cancelled"):
        submit.submit(stages, sweep, asked)
    assert len(simulated.jobs) == 3
    assert not simulated.alive


def test_arrays_are_no_larger_than_the_cluster_allows(
    simulated: Simulated, sweep: Sweep, stages: list[StageSpec]
) -> None:
    simulated.answers("scontrol", CONFIG.replace("1001", "2"))
    submit.submit(stages[:3], sweep, terms(max_parallel=4))
    assert sorted(simulated.jobs) == ["1_0", "1_1", "2"]
    assert "array=0-1%2" in simulated.jobs["1_0"]["flags"], "max_parallel holds for all together"
    assert_each_stage_has_one_job(simulated, sweep, stages[:3])


@pytest.mark.parametrize("state", ["PREEMPTED", "DEADLINE", "REVOKED", "COMPLETING", "NODE_FAIL"])
def test_an_ended_job_is_submitted_again_and_so_is_what_waits_for_it(
    simulated: Simulated, sweep: Sweep, stages: list[StageSpec], state: str
) -> None:
    submit.submit(stages, sweep, terms())
    first = read_note(sweep.store, stages[0].fingerprint)
    assert first is not None
    jobs = simulated.jobs
    jobs[str(first.job_id)]["state"] = state  # its child still waits for it
    simulated.jobs = jobs
    _, new = submit.submit(stages, sweep, terms())
    assert set(new) == {stages[0].fingerprint, stages[3].fingerprint}
    assert_each_stage_has_one_job(simulated, sweep, stages)


def test_what_was_not_enough_is_asked_for_again_with_more(
    simulated: Simulated, sweep: Sweep, stages: list[StageSpec]
) -> None:
    simulated.answers("sinfo", "6000\n6000\n")
    submit.submit(stages[:1], sweep, terms())
    simulated.end("1", "OUT_OF_MEMORY")
    submit.submit(stages[:1], sweep, terms())
    assert "mem=6000M" in simulated.jobs["2"]["flags"], "twice 4000M, but no node has more"
    again = {stages[0].fingerprint: Again("", attempt=3, exclude=("n1", "n2"))}
    simulated.end("2", "NODE_FAIL")
    submit.submit(stages[:1], sweep, terms(), again)
    assert "exclude=n1,n2" in simulated.jobs["3"]["flags"]
    note = read_note(sweep.store, stages[0].fingerprint)
    assert note is not None
    assert note.attempt == 3


def test_the_reports_job_is_part_of_it(
    simulated: Simulated, sweep: Sweep, stages: list[StageSpec]
) -> None:
    sweep.record(Plan(()))
    jobs, _ = submit.submit(stages, sweep, terms(wait=False))
    assert "makes the report" in submit_report(sweep, terms(wait=False), jobs.values())
    note = read_report_note(sweep.name, sweep.plan())
    assert note is not None
    assert simulated.jobs[str(note.job_id)]["after"].startswith("afterany:1:")
    submit_report(sweep, terms(wait=False), jobs.values())
    reports = [job for job in simulated.alive.values() if "report" in job["name"]]
    assert len(reports) == 1, "the earlier one is cancelled"
    simulated.when("sbatch", "refuses once")
    said = submit_report(sweep, terms(wait=False), jobs.values())
    assert "the last stage that ends makes it" in said
    assert json.loads((sweep.folder / "plan.json").read_text())["report_job"] is None


def test_variables_of_the_users_do_not_override_what_is_submitted(
    simulated: Simulated,
    sweep: Sweep,
    stages: list[StageSpec],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor do those of a job that submits: sbatch puts variables above the flags of a script."""
    given = {
        "SBATCH_JOB_NAME": "mine", "SBATCH_ARRAY_INX": "0-9", "SBATCH_TIMELIMIT": "1",
        "SBATCH_WAIT": "1", "SLURM_JOB_ID": "5", "SLURM_NTASKS": "8", "SUBMITIT_EXECUTOR": "slurm",
    }  # fmt: skip
    for name, value in (given | {"SBATCH_ACCOUNT": "ours", "SLURM_CONF": "/etc/x"}).items():
        monkeypatch.setenv(name, value)
    simulated.write("sbatch", f"#!/bin/sh\nenv > {simulated.folder}/env; echo job 1\n")
    submit.submit(stages[:2], sweep, terms())
    seen = dict(one.split("=", 1) for one in (simulated.folder / "env").read_text().splitlines())
    assert not set(given) & set(seen)
    assert (seen["SBATCH_ACCOUNT"], seen["SLURM_CONF"]) == ("ours", "/etc/x")


def test_ctrl_c_inside_the_call_of_sbatch(
    simulated: Simulated, small: list[str], tmp_path: Path
) -> None:
    """The call is not cut off; what stands is cancelled, and one line says so."""
    simulated.when("sbatch", "slow briefly once")
    process = subprocess.Popen(
        [
            sys.executable, "-m", "heft_pipeline", "-m", *small, "method=lora,heft", "epochs=1",
            "hydra/launcher=slurm", "hydra.launcher.time=30", f"output_dir={tmp_path}/out",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (simulated.folder / "sbatch.hanging").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped while submitting. The 2 jobs" in out
    assert "Traceback" not in out + err
    assert len(simulated.jobs) == 2
    assert not simulated.alive
