"""Sweeps on a real SLURM: sharing, dependencies, preemption, cancelling, refusals."""

import dataclasses
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.slurm_cluster import Cluster
from heft_pipeline.plan.graph import Run
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.store.sweep_folders import Sweep
from launch.slurm.job_notes import read_note, read_report_note
from launch.slurm.job_states import cancel_jobs, job_states
from launch.slurm.settings import SlurmSettings
from launch.slurm.submit import Terms, submit, submit_lock
from tests.launch.sweeps_on_slurm import (
    SECONDS,
    adapter,
    cluster_or_skip,
    launch,
    notes,
    running,
    start,
    sweep,
    wait_for,
)

ComposeRun = Callable[..., Run]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with accounting, for all tests of this file."""
    yield from running(cluster_or_skip(tmp_path_factory.mktemp("slurm"), accounting=True))


@pytest.fixture
def cluster_without_accounting(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster where sacct knows nothing."""
    yield from running(cluster_or_skip(tmp_path / "slurm", accounting=False))


@pytest.fixture
def asked(small: list[str], tmp_path: Path) -> list[str]:
    return [
        *small,
        "hydra/launcher=slurm",
        "hydra.launcher.poll_seconds=0.5",
        "hydra.launcher.time=5",
        "report.base_model=false",  # most tests follow one job
        f"output_dir={tmp_path}/out",
    ]


def test_a_six_run_sweep(cluster: Cluster, asked: list[str], tmp_path: Path) -> None:
    """An array of four stages and the untouched model; two fine ones, each after its coarse one."""
    overrides = ["method=lora,reft,heft", "epochs=1,2", "sweep=s", "report.base_model=true"]
    dry = sweep(*asked, *overrides, "hydra.launcher.dry_run=true")
    assert dry.returncode == 0, dry.stderr
    assert "would submit 7 jobs in 3 calls of sbatch" in dry.stdout
    assert "array of 5" in dry.stdout
    assert not (tmp_path / "out" / "stages").exists()
    done = sweep(*asked, *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_csv(tmp_path / "out" / "sweeps" / "s" / "results.csv")
    assert (len(table), set(table.status)) == (6, {"complete"})
    jobs = {key: note["job_id"] for key, note in notes(Store(tmp_path / "out"), "job.json").items()}
    assert len(set(jobs.values())) == 7
    arrays = {job.split("_")[0] for job in jobs.values() if "_" in job}
    assert len(arrays) == 1
    plan = json.loads((tmp_path / "out" / "sweeps" / "s" / "plan.json").read_text())
    ran = {}
    for line in cluster.run("sacct", "-XnP", "-o", "JobID,Start,End").splitlines():
        job, begin, end = line.split("|")
        ran[job] = (begin, end)
    for run in plan["runs"]:
        for coarse, fine in zip(run["stages"], run["stages"][1:], strict=False):
            assert ran[jobs[fine]][0] >= ran[jobs[coarse]][1], "fine after its own coarse"
    measured = notes(Store(tmp_path / "out"), "forgetting.json")
    assert set(measured) == set(jobs), "each job measures what its stage has forgotten"
    again = sweep(*asked, *overrides)
    assert "0 jobs submitted" in again.stdout
    shown = launch("status", "s", "--output-dir", str(tmp_path / "out"))
    assert "6 of 6 runs complete" in shown.stdout


def test_a_failed_coarse_stage_cancels_its_fine_stage_and_no_other(
    cluster: Cluster, asked: list[str], tmp_path: Path
) -> None:
    done = sweep(*asked, "method=heft,reft", "epochs=1", "lora.learning_rate=1e30", "sweep=s")
    assert done.returncode == 1
    assert "NaN or infinite" in done.stdout
    assert "Traceback" not in done.stderr
    table = pd.read_csv(tmp_path / "out" / "sweeps" / "s" / "results.csv")
    assert table.status.tolist() == ["failed", "complete"]
    shown = launch("status", "s", "--output-dir", str(tmp_path / "out"))
    assert "1 failed" in shown.stdout
    assert "1 cancelled" in shown.stdout


@pytest.mark.parametrize("accounting", [True, False])
def test_a_preempted_stage_ends_bitwise_as_an_undisturbed_one(
    request: pytest.FixtureRequest,
    compose_run: ComposeRun,
    small: list[str],
    asked: list[str],
    tmp_path: Path,
    accounting: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGUSR2, as SLURM sends it before a time limit or on preemption, in mid-stage."""
    request.getfixturevalue("cluster" if accounting else "cluster_without_accounting")
    made_of = ["method=lora", "epochs=60", "lora.batch_size=4"]
    stage = compose_run(*small, *made_of).last
    undisturbed, disturbed = Store(tmp_path / "quiet"), Store(tmp_path / "out")
    process = start(*asked, *made_of, "sweep=s")
    wait_for(lambda: (disturbed.progress(stage.fingerprint) or {}).get("done", 0) > 20, "step 20")
    job = read_note(disturbed, stage.fingerprint)
    assert job is not None
    assert job.job_id is not None
    for number in (1, 2):
        subprocess.run(["scancel", "--signal=USR2", job.job_id], check=True)
        wait_for(
            lambda number=number: (
                (  # type: ignore[misc]
                    disturbed.owner(stage.fingerprint) or {}
                ).get("requeues")
                == number
            ),
            f"requeue {number}",
        )
        wait_for(lambda: disturbed.owner(stage.fingerprint), "it to run again")
        seen = (disturbed.progress(stage.fingerprint) or {}).get("done", 0)
        wait_for(
            lambda seen=seen: (  # type: ignore[misc]
                disturbed.is_complete(stage.fingerprint)
                or (disturbed.progress(stage.fingerprint) or {}).get("done", 0) > seen
            ),
            "progress",
        )
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, out + err
    result = disturbed.result(stage.fingerprint)
    assert result is not None
    assert result["resumes"] == 2
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the job had
    try:
        expected = run_stage(stage, undisturbed).result
    finally:
        torch.set_num_threads(threads)
    assert adapter(disturbed, stage.fingerprint) == adapter(undisturbed, stage.fingerprint)
    assert result["accuracy"] == expected["accuracy"]


def test_requeues_are_bounded(cluster: Cluster, asked: list[str], tmp_path: Path) -> None:
    process = start(
        *asked, "method=lora", "epochs=2000", "sweep=s", "hydra.launcher.max_requeues=0"
    )
    store = Store(tmp_path / "out")
    wait_for(lambda: notes(store, "progress.json"), "progress")
    (note,) = notes(store, "job.json").values()
    subprocess.run(["scancel", "--signal=USR2", note["job_id"]], check=True)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 1, err
    assert "hydra.launcher.max_requeues" in out
    assert list(tmp_path.glob("out/stages/*/checkpoint/last.safetensors"))


def test_scancel_is_seen_and_retry_goes_on(
    cluster: Cluster, asked: list[str], tmp_path: Path
) -> None:
    process = start(*asked, "method=lora", "epochs=40", "lora.batch_size=4", "sweep=s")
    store = Store(tmp_path / "out")
    wait_for(lambda: notes(store, "progress.json"), "progress")
    (note,) = notes(store, "job.json").values()
    shown = launch("status", "s", "--output-dir", str(tmp_path / "out"))
    assert "1 running" in shown.stdout
    assert note["job_id"] in shown.stdout
    subprocess.run(["scancel", note["job_id"]], check=True)
    out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert "ended without a result (CANCELLED" in out
    assert list(tmp_path.glob("out/stages/*/checkpoint/last.safetensors")), "told to save first"
    again = launch("retry", "s", "--output-dir", str(tmp_path / "out"))
    assert again.returncode == 0, again.stdout + again.stderr
    (result,) = notes(store, "result.json").values()
    assert result["resumes"] == 1


def test_leaving_after_submission_and_being_killed(
    cluster: Cluster, asked: list[str], tmp_path: Path
) -> None:
    """Nothing of a submitted sweep depends on the process that submitted it."""
    process = start(*asked, "method=lora,heft", "epochs=1", "sweep=s", "hydra.launcher.wait=false")
    plan = tmp_path / "out" / "sweeps" / "s" / "plan.json"

    def submitted() -> bool:
        # What is about to be submitted is noted first, and has no number yet.
        note = read_report_note("s", Sweep(plan.parent).plan()) if plan.is_file() else None
        return note is not None and note.job_id is not None

    wait_for(submitted, "the submission")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    results = tmp_path / "out" / "sweeps" / "s" / "results.csv"
    wait_for(results.is_file, "the report")
    wait_for(lambda: "complete" in results.read_text(), "the table")
    assert set(pd.read_csv(results).status) == {"complete"}


def test_the_report_is_made_after_failures_too(
    cluster: Cluster, asked: list[str], tmp_path: Path
) -> None:
    left = ["sweep=s", "hydra.launcher.wait=false", "lora.learning_rate=1e30"]
    done = sweep(*asked, "method=lora,reft", "epochs=1", *left)
    assert done.returncode == 0, done.stderr
    assert "makes the report" in done.stdout
    results = tmp_path / "out" / "sweeps" / "s" / "results.csv"
    wait_for(results.is_file, "the report")
    assert pd.read_csv(results).status.tolist() == ["failed", "complete"]


def test_two_sweeps_share_a_stage_on_the_cluster(
    cluster: Cluster, asked: list[str], tmp_path: Path
) -> None:
    # Long enough for the second command to come while the first one's stage is trained.
    first = start(*asked, "method=lora", "epochs=400", "sweep=a")
    store = Store(tmp_path / "out")
    # What is about to be submitted is noted first, and has no number yet.
    numbered = lambda: [note for note in notes(store, "job.json").values() if note["job_id"]]  # noqa: E731
    wait_for(numbered, "the first submission")
    (job,) = numbered()
    second = sweep(*asked, "method=lora,heft", "epochs=400", "reft.epochs=1", "sweep=b")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "1 jobs submitted, 1 already on the cluster" in second.stdout
    assert first.wait(timeout=SECONDS) == 0
    assert len(notes(store, "result.json")) == 2
    assert notes(store, "job.json")[next(k for k, n in notes(store, "job.json").items()
                                         if n["sweep"] == "a")] == job  # fmt: skip


def test_a_stage_of_two_tasks(
    cluster: Cluster, compose_run: ComposeRun, small: list[str], asked: list[str], tmp_path: Path
) -> None:
    from heft_pipeline.training.metrics import read_metrics

    made_of = ["method=lora", "epochs=1", "lora.dropout=0", "training.log_every_steps=1"]
    done = sweep(*asked, *made_of, "sweep=s", "hydra.launcher.gpus_per_stage=2")
    assert done.returncode == 0, done.stdout + done.stderr
    stage = compose_run(*small, *made_of).last
    together, alone = Store(tmp_path / "out"), Store(tmp_path / "alone")
    run_stage(stage, alone)
    result = together.result(stage.fingerprint)
    assert result is not None
    assert result["processes"] == 2

    def losses(store: Store) -> list[float]:
        lines = read_metrics(store.folder(stage.fingerprint) / "metrics.jsonl")
        return [line["loss"] for line in lines if line["event"] == "step"]

    assert losses(together) == pytest.approx(losses(alone), rel=1e-3, abs=1e-4)


def test_cancel_ends_a_sweeps_jobs(cluster: Cluster, asked: list[str], tmp_path: Path) -> None:
    left = ["sweep=s", "hydra.launcher.wait=false"]
    assert sweep(*asked, "method=lora,heft", "epochs=2000", *left).returncode == 0
    done = launch("cancel", "s", "--output-dir", str(tmp_path / "out"))
    assert "3 jobs cancelled" in done.stdout, done.stdout + done.stderr
    store = Store(tmp_path / "out")
    jobs = {key: note for key in notes(store, "job.json") if (note := read_note(store, key))}
    assert len(jobs) == 2
    wait_for(lambda: all(job.over for job in job_states(jobs).values()), "the jobs to end")


def test_slurms_refusals_are_shown_and_leave_nothing_behind(
    cluster: Cluster, asked: list[str], tmp_path: Path
) -> None:
    for said, overrides in (
        ("hydra.launcher.partition=nosuch", ["hydra.launcher.partition=nosuch"]),
        ("hydra.launcher.time=2:00:00", ["hydra.launcher.time=2:00:00"]),
        ("hydra.launcher.time=soon", ["hydra.launcher.time=soon"]),
        ("Invalid generic resource", ["hydra.launcher.gres=tpu:1"]),
    ):
        done = sweep(*asked, "method=lora,heft", "sweep=s", *overrides)
        assert done.returncode == 1, said
        assert said in done.stderr
        assert "Traceback" not in done.stderr
        assert not notes(Store(tmp_path / "out"), "job.json")
    assert "heft-s" not in cluster.run("squeue", "--noheader", "--format=%j %T", "--states=PD,R")


def test_changed_data_is_refused_by_the_job(
    cluster: Cluster, asked: list[str], small_data: Path, tmp_path: Path
) -> None:
    import shutil

    data = tmp_path / "data"
    shutil.copytree(small_data, data)
    cluster.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        process = start(*asked, f"data.path={data}", "method=lora", "epochs=1", "sweep=s")
        wait_for(lambda: notes(Store(tmp_path / "out"), "job.json"), "the submission")
        with (data / "train.jsonl").open("a") as file:
            file.write('{"passage": "w1 w2", "question": "w1", "answer": true}\n')
    finally:
        cluster.run("scontrol", "update", "PartitionName=main", "State=UP")
    out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert "has changed since the job was submitted" in out


def test_two_hundred_stages_are_submitted_at_once(
    cluster: Cluster, compose_run: ComposeRun, small: list[str], tmp_path: Path
) -> None:
    from heft_pipeline.plan.graph import Plan
    from heft_pipeline.store.sweep_folders import Sweep

    run = compose_run(*small, "method=heft")
    runs = []
    for seed in range(100):
        coarse = dataclasses.replace(run.stages[0], seed=seed)
        fine = dataclasses.replace(run.stages[1], seed=seed, parent=coarse)
        runs.append(dataclasses.replace(run, name=f"r{seed}", stages=(coarse, fine)))
    plan = Plan(tuple(runs))
    folder = Sweep(tmp_path / "out" / "sweeps" / "s")
    folder.store.require_writable()
    settings = SlurmSettings(
        time="5", sbatch={"hold": True}, max_parallel=4, max_requeues=1, signal_seconds=30
    )
    with submit_lock(folder.store):
        jobs, submitted = submit(list(plan.stages.values()), folder, Terms(settings))
        jobs_noted = {key: note for key in jobs if (note := read_note(folder.store, key))}
        try:
            assert (len(jobs), len(submitted), len(set(jobs.values()))) == (200, 200, 200)
            assert sum(job.alive for job in job_states(jobs_noted).values()) == 200
            again, more = submit(list(plan.stages.values()), folder, Terms(settings))
            assert (again, more) == (jobs, [])
        finally:
            cancel_jobs(jobs_noted)
