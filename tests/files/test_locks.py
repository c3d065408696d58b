"""Locks hold between processes, are looked at without writing, and do without flock."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import Timeout

from heft_pipeline.errors import LeaseLost
from heft_pipeline.files import locks
from heft_pipeline.files.locks import file_lock, holder, is_locked, lease_of, take
from heft_pipeline.files.process_notes import has_ended, this_process
from heft_pipeline.store.stage_folders import Store
from tests.conftest import CliResult

ELSEWHERE: dict[str, Any] = {"pid": 12, "host": "another-machine", "token": "x"}
_HOLDS = """
import sys
from pathlib import Path
from heft_pipeline.files import locks
locks.BEAT_SECONDS = 0.1
with locks.file_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def nothing(*_: object) -> None:
    """A flock that says yes to everybody."""


def refusal(code: int) -> Callable[..., None]:
    """A flock that ends with an error."""

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return refuse


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that expire after a second."""
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(locks, "EXPIRES_SECONDS", 1.0)
    monkeypatch.setattr(locks, "_SETTLE_SECONDS", 0.05)


@pytest.fixture
def held(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lock of ``.lock``."""
    command = [sys.executable, "-c", _HOLDS, str(tmp_path / ".lock")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_held_lock_is_seen_and_cannot_be_taken(
    held: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    path = tmp_path / ".lock"
    assert is_locked(path) is True
    found = holder(path)
    assert found is not None and found["pid"] == held.pid
    assert not take(file_lock(path))
    held.kill()
    held.wait()
    assert is_locked(path) is False
    assert holder(path) is None
    lock = file_lock(path)
    assert take(lock)
    lock.release()
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]


def test_looking_at_a_lock_writes_nothing(tmp_path: Path) -> None:
    for path in (tmp_path / ".lock", tmp_path / "no-folder" / ".lock"):
        assert is_locked(path) is False
        assert holder(path) is None
    assert not list(tmp_path.iterdir())


def test_a_look_at_a_lock_does_not_count_as_holding_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    lock = file_lock(path)
    opened = os.open(path, os.O_RDONLY)
    fcntl.flock(opened, fcntl.LOCK_SH)
    looking = threading.Timer(0.05, os.close, [opened])
    looking.start()
    assert take(lock)
    lock.release()
    looking.join()


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_a_locks_files_are_made_as_the_umask_says(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        with file_lock(tmp_path / ".lock"):
            for name in (".lock", ".lock.held"):
                assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~mask
    finally:
        os.umask(before)


WITHOUT_FLOCK = {
    "no-op": nothing,
    **{errno.errorcode[code]: refusal(code)
       for code in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)},
}  # fmt: skip


@pytest.mark.parametrize("how", WITHOUT_FLOCK)
def test_where_files_cannot_be_locked_or_only_seem_to_be_the_lease_holds(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: "subprocess.Popen[str]"
) -> None:
    monkeypatch.setattr(fcntl, "flock", WITHOUT_FLOCK[how])
    path = tmp_path / ".lock"
    assert not take(file_lock(path))
    held.kill()
    held.wait()
    with file_lock(path):
        assert json.loads((tmp_path / ".lock.held").read_text())["pid"] == os.getpid()
        assert not take(file_lock(path))
    assert not (tmp_path / ".lock.held").exists()


def test_other_errors_of_flock_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refusal(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        file_lock(tmp_path / ".lock")


def test_the_lease_of_a_killed_process_of_this_machine_does_not_hold(
    held: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    held.kill()
    held.wait()
    lease = tmp_path / ".lock.held"
    assert json.loads(lease.read_text())["pid"] == held.pid
    started = time.monotonic()
    lock = file_lock(tmp_path / ".lock")
    lock.acquire()
    assert time.monotonic() - started < locks.EXPIRES_SECONDS / 2
    assert json.loads(lease.read_text())["pid"] == os.getpid()
    assert sorted(file.name for file in tmp_path.iterdir()) == [".lock", ".lock.held"]
    lock.release()


@pytest.mark.parametrize(
    "content", [json.dumps(ELSEWHERE), "", '{"pid": 99', '{"pid": "?", "host": 3}']
)
def test_a_lease_of_whose_process_nothing_is_known_holds_until_it_expires(
    content: str, tmp_path: Path, quick: None
) -> None:
    lease = tmp_path / ".lock.held"
    lease.write_text(content)
    lock = file_lock(tmp_path / ".lock")
    with pytest.raises(Timeout):
        lock.acquire(timeout=0.3)
    assert lease.read_text() == content
    with lock:
        assert json.loads(lease.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("jump", [-1e6, 1e6, 0.0])
def test_a_lease_that_is_renewed_never_expires_whatever_the_clocks_say(
    jump: float, tmp_path: Path, quick: None
) -> None:
    lease = tmp_path / ".lock.held"
    lease.write_text(json.dumps(ELSEWHERE))
    over = threading.Event()

    def renew() -> None:
        beats = 0
        while not over.wait(0.1):
            beats += 1
            when = time.time() + jump + beats * 1e-3
            os.utime(lease, (when, when))

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(Timeout):
            file_lock(tmp_path / ".lock").acquire(timeout=3)
    finally:
        over.set()
        thread.join()
    assert json.loads(lease.read_text()) == ELSEWHERE


def test_a_lease_is_renewed_while_it_is_held(tmp_path: Path, quick: None) -> None:
    lease = tmp_path / ".lock.held"
    with file_lock(tmp_path / ".lock") as lock:
        seen = set()
        for _ in range(20):
            seen.add(lease.stat().st_mtime_ns)
            time.sleep(0.1)
            lock.check()
    assert len(seen) > 5
    assert not lease.exists()


def test_who_loses_a_lease_is_told_and_leaves_the_new_one_alone(
    tmp_path: Path, quick: None
) -> None:
    lease = tmp_path / ".lock.held"
    with file_lock(tmp_path / ".lock") as lock:
        lock.check()
        lease.write_text(json.dumps(ELSEWHERE))
        time.sleep(0.5)
        with pytest.raises(LeaseLost, match=r"process 12 on another-machine has taken over"):
            lock.check()
    assert json.loads(lease.read_text()) == ELSEWHERE


def test_a_process_that_was_stopped_too_long_finds_out_before_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread that renews the lease has not run either."""
    with file_lock(tmp_path / ".lock") as lock:
        (tmp_path / ".lock.held").write_text(json.dumps(ELSEWHERE))
        lock.check()  # it need not look each time
        now = locks._now()
        monkeypatch.setattr(locks, "_now", lambda: now + locks.EXPIRES_SECONDS)
        with pytest.raises(LeaseLost):
            lock.check()


def test_one_of_many_takes_over(tmp_path: Path) -> None:
    """Several processes that see the same lease expire at once."""
    (tmp_path / ".lock.held").write_text(json.dumps(ELSEWHERE))
    code = """
import fcntl, sys, time
from pathlib import Path
from heft_pipeline.errors import LeaseLost
from heft_pipeline.files import locks
fcntl.flock = lambda *_: None
locks.BEAT_SECONDS, locks.EXPIRES_SECONDS = 0.1, 1.0
folder = Path(sys.argv[1])
for number in range(5):
    try:
        with locks.file_lock(folder / ".lock") as lock:
            (folder / "inside").touch(exist_ok=False)
            time.sleep(0.05)
            (folder / "inside").unlink()
            with (folder / "done").open("a") as done:
                done.write("x")
    except LeaseLost:
        pass
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    said = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0] * 6, said
    assert len((tmp_path / "done").read_text()) >= 25
    left = sorted(file.name for file in tmp_path.iterdir())
    assert left == [".lock", "done"], "nobody was inside together, and nothing is left"


def test_an_earlier_start_of_the_same_slurm_job_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    note = {"pid": 7, "host": "another-machine", "job_id": "12", "requeues": 0}
    assert not has_ended(note)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert not has_ended(note)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert has_ended(note)
    assert not has_ended(note | {"requeues": 1})
    assert not has_ended(note | {"job_id": "13"})


def test_a_process_that_runs_has_not_ended() -> None:
    note = this_process()
    assert not has_ended(note)
    assert has_ended(note | {"started": 1}), "an earlier process of the same number"
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    gone = note | {"pid": done.pid}
    assert has_ended(gone)
    assert not has_ended(gone | {"numbered_in": "another container"}), "nothing is known of it"


@pytest.mark.parametrize("how", ["no-op", "ENOLCK"])
def test_a_sweep_is_trained_and_read_where_files_cannot_be_locked(
    how: str,
    cli: Callable[..., CliResult],
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fcntl, "flock", WITHOUT_FLOCK[how])
    status, _, said = cli(*small, "method=heft", "epochs=1", "sweep=s")
    assert status == 0, said
    assert len(list(tmp_path.glob("outputs/stages/*/result.json"))) == 3
    assert not list(tmp_path.rglob("*.held"))
    store = Store(tmp_path / "outputs")
    assert {store.state(path.name) for path in tmp_path.glob("outputs/stages/*")} == {"complete"}
    assert lease_of(tmp_path / ".lock").name == ".lock.held"
