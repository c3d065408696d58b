"""Waiting for jobs that the cluster ends, forgets or does not speak of."""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from heft_pipeline.plan.graph import Plan, Run
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.sweep_folders import Sweep
from launch.execute_plan import launcher_note
from launch.slurm import wait
from launch.slurm.execute_on_slurm import execute_on_slurm
from launch.slurm.job_life import Job, Life
from launch.slurm.job_notes import JobNote, read_note
from launch.slurm.jobs import report_if_last
from launch.slurm.node_faults import node_fault
from launch.slurm.recover import Again, more_memory, what_follows
from launch.slurm.report_job import submit_what_got_lost
from launch.slurm.settings import SlurmSettings
from launch.status import sweep_status
from tests.launch.slurm.conftest import Simulated

ComposeRun = Callable[..., Run]
QUICK = SlurmSettings(poll_seconds=0.05)
RESULT = {"accuracy": 0.5, "resumes": 0}


@pytest.fixture
def run(compose_run: ComposeRun, small: list[str]) -> Run:
    return compose_run(*small, "method=heft")


@pytest.fixture
def sweep(tmp_path: Path, run: Run) -> Sweep:
    made = Sweep(tmp_path / "out" / "sweeps" / "s")
    made.store.require_writable()
    made.record(Plan((run,)), launcher=launcher_note(QUICK))
    return made


class Cluster(threading.Thread):
    """What happens on the simulated cluster while the test's own thread waits."""

    def __init__(self, steps: Callable[[], None], simulated: Simulated) -> None:
        super().__init__(daemon=True)
        self._steps, self._simulated = steps, simulated
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._steps()
        except BaseException as error:  # raised by the test, once nothing is left to wait for
            self.error = error
            (self._simulated.folder / "squeue.behaviour").unlink(missing_ok=True)
            for job in self._simulated.alive:
                self._simulated.end(job, "CANCELLED")


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def executed(
    sweep: Sweep, run: Run, simulated: Simulated, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[dict[str, str], str]]]:
    """Executes the run while something happens; returns the failures and what was shown."""

    def execute(
        steps: Callable[[], None], settings: SlurmSettings = QUICK
    ) -> tuple[dict[str, str], str]:
        console = Console(record=True, width=200)
        cluster = Cluster(steps, simulated)
        cluster.start()
        failures = execute_on_slurm(Plan((run,)), sweep, settings, console)
        cluster.join()
        if cluster.error:
            raise cluster.error
        assert failures is not None
        return failures, console.export_text()

    yield execute


def finish(sweep: Sweep, stage: StageSpec, simulated: Simulated) -> None:
    """Let a stage's present job write a result and end."""
    until(lambda: (note := read_note(sweep.store, stage.fingerprint)) and note.job_id)
    note = read_note(sweep.store, stage.fingerprint)
    assert note is not None
    sweep.store.complete(stage.fingerprint, RESULT)
    simulated.end(str(note.job_id), "COMPLETED")


@pytest.mark.parametrize("state", ["PREEMPTED", "NODE_FAIL", "TIMEOUT", "OUT_OF_MEMORY"])
def test_what_the_cluster_ends_is_submitted_again_with_what_waits_for_it(
    executed: Callable[..., tuple[dict[str, str], str]],
    sweep: Sweep,
    run: Run,
    simulated: Simulated,
    state: str,
) -> None:
    coarse, fine = run.stages
    simulated.answers("sinfo", "n1\nn2\n" if state == "NODE_FAIL" else "8000\n")

    def steps() -> None:
        until(lambda: len(simulated.jobs) == 2)
        simulated.end("1", state)
        until(lambda: len(simulated.alive) == 2)
        finish(sweep, coarse, simulated)
        finish(sweep, fine, simulated)

    failures, shown = executed(steps)
    assert failures == {}
    assert f"{state}" in shown
    assert "submitted again as job 3" in shown
    flags = simulated.jobs["3"]["flags"]
    assert ("exclude=n1" in flags) == (state == "NODE_FAIL")
    assert ("mem=8000M" in flags) == (state == "OUT_OF_MEMORY")
    assert simulated.jobs["4"]["after"] == "afterok:3"


def test_nothing_is_decided_while_slurm_is_silent(
    executed: Callable[..., tuple[dict[str, str], str]],
    sweep: Sweep,
    run: Run,
    simulated: Simulated,
) -> None:
    def steps() -> None:
        until(lambda: len(simulated.jobs) == 2)
        simulated.when("squeue", "silent")
        calls = len(simulated.calls)
        until(lambda: len(simulated.calls) > calls + 4)
        states = {status.state for status in sweep_status(sweep)}
        assert states == {"unknown"}
        (simulated.folder / "squeue.behaviour").unlink()
        for stage in run.stages:
            finish(sweep, stage, simulated)

    failures, shown = executed(steps)
    assert failures == {}
    assert "nothing is known of 2 jobs (squeue: error: Socket timed out" in shown
    assert "SLURM answers again" in shown
    assert len(simulated.jobs) == 2


def test_a_cancelled_job_fails_with_slurms_words_and_so_does_what_waits_for_it(
    executed: Callable[..., tuple[dict[str, str], str]],
    sweep: Sweep,
    run: Run,
    simulated: Simulated,
) -> None:
    def steps() -> None:
        until(lambda: len(simulated.jobs) == 2)
        simulated.end("1", "CANCELLED")

    failures, _ = executed(steps)
    coarse, fine = (failures[stage.fingerprint] for stage in run.stages)
    assert coarse == "job 1 ended without a result (CANCELLED, on n1)"
    assert "its parent stage failed" in fine
    assert [status.state for status in sweep_status(sweep)] == ["cancelled", "cancelled"]


def has_job(sweep: Sweep, stage: StageSpec) -> bool:
    note = read_note(sweep.store, stage.fingerprint)
    return note is not None and bool(note.job_id)


def test_submitting_again_is_bounded(
    executed: Callable[..., tuple[dict[str, str], str]],
    sweep: Sweep,
    run: Run,
    simulated: Simulated,
) -> None:
    def steps() -> None:
        for number in ("1", "3", "5"):
            until(lambda number=number: number in simulated.alive)  # type: ignore[misc]
            until(lambda: all(has_job(sweep, stage) for stage in run.stages))
            simulated.end(number, "PREEMPTED")

    failures, _ = executed(steps, dataclasses.replace(QUICK, max_requeues=2))
    assert "PREEMPTED" in failures[run.stages[0].fingerprint]
    assert "hydra.launcher.max_requeues" in failures[run.stages[0].fingerprint]
    assert len(simulated.jobs) == 6


def test_a_result_that_the_file_system_shows_late_is_waited_for(
    executed: Callable[..., tuple[dict[str, str], str]],
    sweep: Sweep,
    run: Run,
    simulated: Simulated,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wait, "_LOOKS_BEFORE_LOST", 10**6)

    def steps() -> None:
        until(lambda: len(simulated.jobs) == 2)
        for number, stage in zip("12", run.stages, strict=True):
            simulated.end(number, "COMPLETED")
            time.sleep(0.3)
            sweep.store.complete(stage.fingerprint, RESULT)

    failures, _ = executed(steps)
    assert failures == {}
    assert len(simulated.jobs) == 2


def test_the_reports_job_submits_what_got_lost(
    sweep: Sweep, run: Run, simulated: Simulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(QUICK, wait=False)
    sweep.record(Plan(()), launcher=launcher_note(settings))
    console = Console(record=True, width=200)
    assert execute_on_slurm(Plan((run,)), sweep, settings, console) is None
    assert sorted(simulated.jobs) == ["1", "2", "3"]
    simulated.end("1", "PREEMPTED")
    simulated.end("3", "RUNNING")
    monkeypatch.setenv("SLURM_JOB_ID", "3")
    assert submit_what_got_lost(sweep, console)
    assert sorted(simulated.alive) == ["3", "4", "5", "6"], "it does not cancel itself"
    for stage in run.stages:
        finish(sweep, stage, simulated)
    assert not submit_what_got_lost(sweep, console)


def test_the_last_stage_makes_the_report_that_has_no_job(
    sweep: Sweep, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr("launch.slurm.jobs.finish_sweep", lambda *_: made.append(1))
    store, (coarse, fine) = sweep.store, run.stages
    assert not report_if_last(sweep, Console()), "a process waits for this sweep"
    sweep.record(Plan(()), report_job=None)
    for stage in run.stages:
        store.begin(stage)
    store.complete(coarse.fingerprint, RESULT)
    assert not report_if_last(sweep, Console())
    store.complete(fine.fingerprint, RESULT)
    assert report_if_last(sweep, Console())
    (store.folder(fine.fingerprint) / "result.json").unlink()
    (store.folder(coarse.fingerprint) / "result.json").unlink()
    store.fail(coarse.fingerprint, {"reason": "x"})
    assert report_if_last(sweep, Console()), "what waits for a failed stage is never run"
    assert len(made) == 2


def test_what_follows_from_an_end(run: Run, simulated: Simulated) -> None:
    coarse, fine = run.stages

    def follows(state: str, note: JobNote | None = None, **given: str) -> Again | str:
        job = Job(Life.ENDED, "7", state, **given)
        return what_follows(coarse, note or JobNote("s", 0.0, "7"), job, (), QUICK)

    assert isinstance(follows("CANCELLED", reason="DependencyNeverSatisfied"), Again)
    for state in ("CANCELLED", "FAILED", "COMPLETED", "DEADLINE", ""):
        assert isinstance(follows(state), str)
    simulated.answers("sinfo", "n1\n")
    alone = follows("NODE_FAIL", node="n1")
    assert isinstance(alone, Again)
    assert alone.exclude == (), "the only node is not left out"
    simulated.answers("sinfo", "4000\n")
    assert "hydra.launcher.mem" in str(follows("OUT_OF_MEMORY", mem="4000M")), "no node has more"
    assert "its parent stage failed" in str(
        what_follows(fine, JobNote("s", 0.0), Job(Life.ENDED), {coarse.fingerprint}, QUICK)
    )


def test_more_memory(simulated: Simulated) -> None:
    simulated.answers("sinfo", "100000+\n")
    assert more_memory("4G", QUICK) == "8192M"
    assert more_memory("4000M", QUICK) == "8000M"
    assert more_memory("4000Mn", dataclasses.replace(QUICK, mem_factor=1.5)) == "6000M"
    assert more_memory("64G", QUICK) == "100000M"
    assert more_memory("200G", QUICK) is None
    assert more_memory("4G", dataclasses.replace(QUICK, mem_factor=1.0)) is None
    assert more_memory(None, QUICK) is None
    assert more_memory("0", QUICK) is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("AcceleratorError: CUDA error: uncorrectable ECC error encountered", True),
        ("RuntimeError: No CUDA GPUs are available: no CUDA-capable device is detected", True),
        ("OSError: [Errno 116] Stale file handle: '/home/x'", True),
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", False),
        ("AcceleratorError: CUDA error: device-side assert triggered", False),
        ("the training loss is NaN or infinite at step 3", False),
    ],
)
def test_faults_of_a_node(text: str, fault: bool) -> None:
    assert (node_fault(text) is not None) == fault
