"""What is known of jobs, from recorded answers of squeue and sacct in all their states."""

import time

import pytest

from launch.slurm import ask, job_states
from launch.slurm.ask import NoAnswer, Patience
from launch.slurm.job_life import LIVES, Life
from launch.slurm.job_notes import JobNote
from launch.slurm.job_states import cancel_jobs, expanded
from tests.launch.slurm.conftest import Recorded

PAST, FUTURE = "2020-01-01T00:00:00", "2100-01-01T00:00:00"
SILENT = "slurm_load_jobs error: Socket timed out on send/recv operation"


def note(job_id: str | None = "7", **given: object) -> JobNote:
    return JobNote("s", time.time(), job_id=job_id, submission="abc", **given)  # type: ignore[arg-type]


def line(job_id: str, state: str, end: str = FUTURE, reason: str = "None", name: str = "x") -> str:
    return f"{job_id}|{state}|{reason}|n1|{end}|4000M|{name}\n"


def the_state(recorded: Recorded, *lines: str, of: JobNote | None = None) -> job_states.Job:
    recorded.answers("squeue", "".join(lines))
    return job_states.job_states({"k": of or note()})["k"]


@pytest.mark.parametrize("word", LIVES)
def test_each_word_of_slurms_has_a_life(recorded: Recorded, word: str) -> None:
    recorded.answers("sacct", err="Slurm accounting storage is disabled", status=1)
    job = the_state(recorded, line("6", "RUNNING"), line("7", word, end=PAST))
    assert job.life is LIVES[word]
    assert job.state == word
    assert job.alive + job.over == 1


def test_a_word_that_is_not_listed_is_unknown(recorded: Recorded) -> None:
    job = the_state(recorded, line("7", "DREAMING"))
    assert job.life is Life.UNKNOWN
    assert not job.alive
    assert not job.over
    assert "DREAMING" in job.reason


def test_a_job_that_completes_is_over_and_one_that_is_requeued_is_not(recorded: Recorded) -> None:
    assert the_state(recorded, line("7", "COMPLETING", end=PAST)).over
    assert the_state(recorded, line("7", "COMPLETING", end=FUTURE)).alive
    assert the_state(recorded, line("7", "COMPLETING", end="N/A")).alive, "no time limit"


@pytest.mark.parametrize("how", ["fails", "missing", "slow", "no configuration"])
def test_without_an_answer_nothing_is_known(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "fails":
        recorded.answers("squeue", err=SILENT, status=1)
    elif how == "missing":
        monkeypatch.setenv("PATH", str(recorded.folder))
        recorded.is_missing("squeue")
    elif how == "slow":
        monkeypatch.setattr(ask, "CALL_SECONDS", 0.3)
        recorded.answers("squeue", line("7", "RUNNING"), seconds=3)
    else:
        recorded.answers("scontrol", err=SILENT, status=1)
    job = job_states.job_states({"k": note()})["k"]
    assert job.life is Life.UNKNOWN
    assert job.reason
    with pytest.raises(NoAnswer):
        cancel_jobs({"k": note()})
    assert not [call for call in recorded.calls if call.startswith("scancel")]


def test_patience_asks_again_and_says_so_once(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    tries = iter([False, False, True])

    def once(command: list[str]) -> str:
        if next(tries):
            return "yes"
        raise NoAnswer(SILENT)

    monkeypatch.setattr(ask, "_ask_once", once)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(Patience, "_sleep", lambda *_: True)
    assert Patience(100, said.append).ask(["squeue"]) == "yes"
    assert len(said) == 1
    assert "Socket timed out" in said[0]


def test_a_command_that_is_missing_is_not_waited_for(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded.is_missing("sinfo")
    monkeypatch.setenv("PATH", str(recorded.folder))
    begun = time.monotonic()
    with pytest.raises(NoAnswer, match="this machine has no sinfo"):
        Patience(100).ask(["sinfo"])
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("TIMEOUT||0:0|n3|4000M", "TIMEOUT, exit code 0:0, on n3"),
        ("CANCELLED by 1000||0:15|n3|4000M", "CANCELLED (by 1000), exit code 0:15, on n3"),
        ("OUT_OF_MEMORY||0:125|n3|4000M", "OUT_OF_MEMORY, exit code 0:125, on n3"),
        ("NODE_FAIL|None|1:0|n3|4000M", "NODE_FAIL, exit code 1:0, on n3"),
        ("PREEMPTED||0:0|None assigned|4000M", "PREEMPTED, exit code 0:0"),
    ],
)
def test_accounting_says_how_a_job_ended_that_squeue_has_forgotten(
    recorded: Recorded, words: str, said: str
) -> None:
    recorded.answers("sacct", f"7|{words}|heft-s-abc\n")
    job = the_state(recorded, line("6", "RUNNING"))
    assert job.life is Life.ENDED
    assert job.said() == said
    assert job.mem == "4000M"


@pytest.mark.parametrize("accounts", ["silent", "behind"])
def test_a_job_that_squeue_does_not_list_has_ended(recorded: Recorded, accounts: str) -> None:
    if accounts == "silent":
        recorded.answers("sacct", err="Slurm accounting storage is disabled", status=1)
    else:
        recorded.answers("sacct", "7|RUNNING||0:0|n1|4000M|heft-s-abc\n")
    job = the_state(recorded)
    assert (job.life, job.said()) == (Life.ENDED, "SLURM has forgotten how")


def test_elements_of_an_array_that_were_cancelled_in_the_queue(recorded: Recorded) -> None:
    recorded.answers("sacct", "7_[0-2,5%4]|CANCELLED by 0||0:0|None assigned|4000M|heft-s-abc\n")
    jobs = job_states.job_states({n: note(f"7_{n}") for n in "0259"})
    assert [jobs[n].state for n in "0259"] == ["CANCELLED"] * 3 + [""]
    assert expanded("7_[0-2,5%4]") == ["7_0", "7_1", "7_2", "7_5"]
    assert expanded("7_3") == ["7_3"]


def test_a_job_whose_id_was_not_noted_is_found_by_its_name(recorded: Recorded) -> None:
    lines = [line(f"9_{n}", "PENDING", name="heft-s-abc") for n in range(3)]
    assert the_state(recorded, *lines, of=note(None, index=2, count=3)).job_id == "9_2"
    alone = [line("8", "RUNNING", name="heft-s-abc"), line("9", "RUNNING", name="heft-s-abcd")]
    assert the_state(recorded, *alone, of=note(None)).job_id == "8"
    recorded.answers("sacct", "11|COMPLETED||0:0|n1|4000M|heft-s-abc\n")
    job = the_state(recorded, of=note(None))
    assert (job.job_id, job.state) == ("11", "COMPLETED")
    assert "--name heft-s-abc" in recorded.calls[-1]


def test_a_job_that_nobody_knows_was_not_submitted_once_it_could_have_been(
    recorded: Recorded,
) -> None:
    recent = the_state(recorded, of=note(None))
    assert (recent.life, recent.reason) == (Life.UNKNOWN, job_states.MAY_APPEAR)
    long_ago = JobNote("s", time.time() - job_states.SETTLE_SECONDS - 1, submission="abc")
    assert the_state(recorded, of=long_ago).life is Life.NOT_SUBMITTED


def test_a_job_of_another_cluster_is_unknown(recorded: Recorded) -> None:
    job = the_state(recorded, of=note(cluster="elsewhere"))
    assert job.life is Life.UNKNOWN
    assert "elsewhere" in job.reason


def test_names_with_bars_are_read(recorded: Recorded) -> None:
    assert the_state(recorded, line("6", "RUNNING", name="a|b"), line("7", "PENDING")).alive


def test_what_slurm_has_not_cancelled_is_said(recorded: Recorded) -> None:
    recorded.answers("squeue", line("7", "RUNNING"))
    recorded.answers("scancel", err="scancel: error: Kill job error", status=1)
    with pytest.raises(NoAnswer, match="SLURM has not cancelled 7"):
        cancel_jobs({"k": note()})


def test_a_filter_of_the_users_hides_no_job(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQUEUE_PARTITION", "other")
    script = '[ -z "$SQUEUE_PARTITION" ] && echo "7|RUNNING|None|n1|N/A|0|x"; exit 0'
    recorded.write("squeue", f"#!/bin/sh\n{script}\n")
    assert job_states.job_states({"k": note()})["k"].alive


def test_the_name_of_a_cluster_above_its_jobs(recorded: Recorded) -> None:
    assert the_state(recorded, "CLUSTER: here\n", line("7", "RUNNING")).alive
