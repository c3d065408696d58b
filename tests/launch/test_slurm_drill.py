"""A drill on a real SLURM of two nodes: whatever happens to jobs, the results are the same."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.slurm_cluster import Cluster
from heft_pipeline.plan.graph import Run
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.stage_folders import Store
from launch.slurm.job_notes import JobNote, read_note
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
MADE_OF = ["method=heft", "lora.epochs=40", "reft.epochs=2", "lora.batch_size=4"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("drill")
    made = cluster_or_skip(folder, accounting=True, nodes=("n1", "n2"), preemption=True)
    yield from running(made)


def asked_in(out: Path, small: list[str]) -> list[str]:
    return [
        *small,
        "hydra/launcher=slurm",
        "hydra.launcher.poll_seconds=0.5",
        "hydra.launcher.time=5",
        "report.base_model=false",
        "sweep=s",
        f"output_dir={out}",
    ]


@pytest.fixture
def asked(small: list[str], tmp_path: Path) -> list[str]:
    return [*asked_in(tmp_path / "out", small), *MADE_OF]


@pytest.fixture(scope="module")
def undisturbed(
    cluster: Cluster, small: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Store:
    out = tmp_path_factory.mktemp("undisturbed")
    done = sweep(*asked_in(out, small), *MADE_OF)
    assert done.returncode == 0, done.stdout + done.stderr
    return Store(out)


@pytest.fixture
def stages(compose_run: ComposeRun, small: list[str]) -> tuple[StageSpec, ...]:
    return compose_run(*small, *MADE_OF).stages


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "out")


def training(store: Store, stage: StageSpec) -> JobNote:
    """Wait until a stage has trained a little; returns its job."""
    wait_for(lambda: (store.progress(stage.fingerprint) or {}).get("done", 0) > 20, "step 20")
    note = read_note(store, stage.fingerprint)
    assert note is not None
    assert note.job_id is not None
    return note


def assert_equal(store: Store, undisturbed: Store, stages: tuple[StageSpec, ...]) -> None:
    for stage in stages:
        key = stage.fingerprint
        assert adapter(store, key) == adapter(undisturbed, key)
        one, other = (
            pd.read_parquet(each.folder(key) / "predictions.parquet")
            for each in (store, undisturbed)
        )
        pd.testing.assert_frame_equal(one, other)


def node_of(cluster: Cluster, note: JobNote) -> str:
    return cluster.run("squeue", "-h", "-j", str(note.job_id), "-o", "%N").strip()


def urgent_job(cluster: Cluster) -> None:
    """A job that takes both nodes for a moment."""
    cluster.run(
        "sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--time=1",
        "--output=/dev/null", "--wrap", "sleep 3",
    )  # fmt: skip


@pytest.mark.parametrize("partition", ["main", "cancelled"])
def test_preemption_that_requeues_and_preemption_that_cancels(
    cluster: Cluster,
    undisturbed: Store,
    asked: list[str],
    store: Store,
    stages: tuple[StageSpec, ...],
    partition: str,
) -> None:
    process = start(*asked, f"hydra.launcher.partition={partition}")
    first = training(store, stages[0])
    urgent_job(cluster)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, out + err
    last = read_note(store, stages[0].fingerprint)
    assert last is not None
    assert (last.job_id != first.job_id) == (partition == "cancelled")
    assert ("PREEMPTED; submitted again" in out) == (partition == "cancelled")
    assert (store.result(stages[0].fingerprint) or {})["resumes"] == 1
    assert_equal(store, undisturbed, stages)


def test_preemption_that_cancels_while_nobody_waits(
    cluster: Cluster,
    undisturbed: Store,
    asked: list[str],
    store: Store,
    stages: tuple[StageSpec, ...],
) -> None:
    """The job that makes the report submits the stages again, and another job for the report."""
    done = sweep(*asked, "hydra.launcher.partition=cancelled", "hydra.launcher.wait=false")
    assert done.returncode == 0, done.stdout + done.stderr
    first = training(store, stages[0])
    urgent_job(cluster)
    results = store.output_dir / "sweeps" / "s" / "results.csv"
    wait_for(lambda: results.is_file() and "complete" in results.read_text(), "the report")
    assert set(pd.read_csv(results).status) == {"complete"}
    last = read_note(store, stages[0].fingerprint)
    assert last is not None
    assert last.job_id != first.job_id
    assert_equal(store, undisturbed, stages)


def test_a_node_that_goes_down(
    cluster: Cluster,
    undisturbed: Store,
    asked: list[str],
    store: Store,
    stages: tuple[StageSpec, ...],
) -> None:
    process = start(*asked)
    node = node_of(cluster, training(store, stages[0]))
    cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=drill")
    try:
        out, err = process.communicate(timeout=SECONDS)
    finally:
        # SLURM refuses this where the node has come back by itself.
        resume = ["scontrol", "update", f"nodename={node}", "state=resume"]
        subprocess.run(resume, capture_output=True, check=False)
    assert process.returncode == 0, out + err
    assert_equal(store, undisturbed, stages)


def test_a_controller_that_is_away(
    cluster: Cluster,
    undisturbed: Store,
    asked: list[str],
    store: Store,
    stages: tuple[StageSpec, ...],
) -> None:
    process = start(*asked)
    training(store, stages[0])
    cluster.stop_controller()
    try:
        shown = launch("status", "s", "--json", "--output-dir", str(store.output_dir))
        states = [stage["state"] for stage in json.loads(shown.stdout)["stages"]]
        assert states[0] in ("running", "complete"), "its lock and files say so"
        assert states[1] in ("unknown", "complete")
        time.sleep(10)
        assert process.poll() is None, "it waits"
    finally:
        cluster.start_controller()
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, out + err
    assert "SLURM answers again" in out
    assert_equal(store, undisturbed, stages)


def test_cancel_and_at_once_the_same_command(
    cluster: Cluster,
    undisturbed: Store,
    asked: list[str],
    store: Store,
    stages: tuple[StageSpec, ...],
) -> None:
    process = start(*asked)
    training(store, stages[0])
    cancelled = launch("cancel", "s", "--output-dir", str(store.output_dir))
    assert "2 jobs cancelled" in cancelled.stdout, cancelled.stdout + cancelled.stderr
    process.kill()
    process.wait()
    done = sweep(*asked)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 jobs submitted, 0 already" in done.stdout
    assert_equal(store, undisturbed, stages)


def test_a_node_on_which_a_stage_fails_is_left_out(
    cluster: Cluster,
    undisturbed: Store,
    asked: list[str],
    store: Store,
    stages: tuple[StageSpec, ...],
    tmp_path: Path,
) -> None:
    """A pretended fault of the GPU of the node that a stage is sent to first."""
    faulty = tmp_path / "faulty"
    faulty.mkdir()
    (faulty / "sitecustomize.py").write_text(
        "import os, pathlib\n"
        "node = os.environ.get('SLURMD_NODENAME')\n"
        "if 'SUBMITIT_EXECUTOR' in os.environ:\n"
        "    faulty = pathlib.Path(__file__).with_name('node')\n"
        "    if not faulty.exists():\n"
        "        faulty.write_text(node)\n"
        "    import heft_pipeline.stage.run_stage as stage\n"
        "    def fail(*_, **__):\n"
        "        raise RuntimeError('CUDA error: uncorrectable ECC error encountered')\n"
        "    if faulty.read_text() == node:\n"
        "        stage.run_stage = fail\n"
    )
    setup = f'hydra.launcher.setup=["export PYTHONPATH={faulty}:$PYTHONPATH"]'
    done = sweep(*asked, setup)
    assert done.returncode == 0, done.stdout + done.stderr
    note = read_note(store, stages[0].fingerprint)
    assert note is not None
    job = cluster.run("scontrol", "show", "job", str(note.job_id))
    node = (faulty / "node").read_text()
    assert f"ExcNodeList={node}" in job
    assert f" NodeList={'n1' if node == 'n2' else 'n2'}" in job.replace("\n  ", "")
    assert_equal(store, undisturbed, stages)


def test_the_limit_on_submitted_jobs(cluster: Cluster, small: list[str], tmp_path: Path) -> None:
    asked = [*asked_in(tmp_path / "out", small), "method=heft", "epochs=1"]
    limit = ["sacctmgr", "-i", "modify", "user", "where", "name=root", "set"]
    for most, said in ((1, "MaxSubmitJobs is 1"), (2, "There is no job for the report")):
        cluster.run(*limit, f"MaxSubmitJobs={most}")
        try:
            done = sweep(*asked, "hydra.launcher.wait=false")
            assert said in done.stdout + done.stderr
            assert "Traceback" not in done.stderr
            assert done.returncode == (1 if most == 1 else 0)
            results = tmp_path / "out" / "sweeps" / "s" / "results.csv"
            if most == 1:
                assert not notes(Store(tmp_path / "out"), "job.json")
            else:
                wait_for(results.is_file, "the report, which the last stage's job makes")
                assert set(pd.read_csv(results).status) == {"complete"}
        finally:
            cluster.run(*limit, "MaxSubmitJobs=-1")


def test_usage_from_the_clusters_accounts(
    cluster: Cluster, undisturbed: Store, stages: tuple[StageSpec, ...]
) -> None:
    shown = launch("usage", "s", "--output-dir", str(undisturbed.output_dir))
    assert shown.returncode == 0, shown.stderr
    assert "GPU hours" in shown.stdout
    assert all(stage.fingerprint[:8] in shown.stdout for stage in stages)


@pytest.mark.slow
def test_time_limits(
    cluster: Cluster,
    small: list[str],
    compose_run: ComposeRun,
    tmp_path: Path,
) -> None:
    """Several limits of a minute, against one run that is long enough."""
    made_of = ["method=lora", "epochs=400", "lora.batch_size=4"]
    stage = compose_run(*small, *made_of).last
    for name, limits in (("quiet", ["hydra.launcher.time=30"]), ("cut", _MINUTE)):
        done = sweep(*asked_in(tmp_path / name, small), *made_of, *limits)
        assert done.returncode == 0, done.stdout + done.stderr
    quiet, cut = Store(tmp_path / "quiet"), Store(tmp_path / "cut")
    assert (cut.result(stage.fingerprint) or {})["resumes"] >= 1
    assert_equal(cut, quiet, (stage,))


_MINUTE = ["hydra.launcher.time=1", "hydra.launcher.signal_seconds=20"]


def test_scancel_of_one_job_is_said_in_slurms_words(
    cluster: Cluster, asked: list[str], store: Store, stages: tuple[StageSpec, ...]
) -> None:
    process = start(*asked)
    note = training(store, stages[0])
    subprocess.run(["scancel", str(note.job_id)], check=True)
    out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert f"job {note.job_id} ended without a result (CANCELLED" in out
    assert "its parent stage failed" in out
    shown = launch("status", "s", "--output-dir", str(store.output_dir))
    assert "2 cancelled" in shown.stdout
