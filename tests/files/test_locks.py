"""Locks hold between processes, are looked at without writing, and do without flock."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import Timeout

from heft_pipeline.command_line import warnings
from heft_pipeline.files import locks
from heft_pipeline.files.locks import MarkerLock, file_lock, has_ended, is_locked, take
from heft_pipeline.store.stage_folders import Store
from tests.conftest import CliResult

_HOLDS = """
import sys
from pathlib import Path
from heft_pipeline.files.locks import file_lock
with file_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make every file system answer flock with an error."""

    def answer(code: int) -> None:
        def refuse(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(fcntl, "flock", refuse)
        monkeypatch.setattr(locks, "_told", set())
        monkeypatch.setattr(warnings, "_said", set())

    return answer


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
    assert not take(file_lock(path))
    held.kill()
    held.wait()
    assert is_locked(path) is False
    lock = file_lock(path)
    assert take(lock)
    lock.release()


def test_looking_at_a_lock_writes_nothing(tmp_path: Path) -> None:
    assert is_locked(tmp_path / ".lock") is False
    assert is_locked(tmp_path / "no-folder" / ".lock") is False
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
def test_a_locks_file_is_made_as_the_umask_says(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        with file_lock(tmp_path / ".lock"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / ".lock").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_files_cannot_be_locked_a_marker_stands_for_the_lock(
    code: int,
    tmp_path: Path,
    no_flock: Callable[[int], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    no_flock(code)
    path = tmp_path / ".lock"
    assert is_locked(tmp_path / ".lock") is False  # there is no file yet
    with file_lock(path):
        assert is_locked(path) is None
        assert json.loads((tmp_path / ".lock.held").read_text())["pid"] == os.getpid()
        other = file_lock(path)
        assert not take(other)
    assert not (tmp_path / ".lock.held").exists()
    said = [record.message for record in caplog.records]
    assert len(said) == 1, "it is said once"
    assert f"files cannot be locked where {tmp_path} is" in said[0]


def test_other_errors_of_flock_are_raised(tmp_path: Path, no_flock: Callable[[int], None]) -> None:
    no_flock(errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        file_lock(tmp_path / ".lock")


def test_the_marker_of_a_killed_process_of_this_machine_does_not_hold(tmp_path: Path) -> None:
    path = tmp_path / ".lock.held"
    code = (
        "import sys, os, signal; from pathlib import Path; "
        "from heft_pipeline.files.locks import MarkerLock; "
        "MarkerLock(Path(sys.argv[1])).acquire(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -9 and path.is_file()
    assert take(MarkerLock(path))
    assert json.loads(path.read_text())["pid"] == os.getpid()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_number_that_another_process_has_now_does_not_hold(tmp_path: Path) -> None:
    path = tmp_path / ".lock.held"
    note = locks.this_process() | {"started": 1}  # this process's number, from before
    path.write_text(json.dumps(note))
    assert take(MarkerLock(path))


@pytest.mark.parametrize(
    "marker",
    ['{"pid": 1, "host": "another-machine"}', "", '{"pid": 99', '{"pid": "?", "host": 3}'],
)
def test_a_marker_of_whose_process_nothing_is_known_holds(marker: str, tmp_path: Path) -> None:
    path = tmp_path / ".lock.held"
    path.write_text(marker)
    with pytest.raises(Timeout):
        MarkerLock(path).acquire(timeout=0)
    assert path.read_text() == marker


def test_waiting_for_a_marker_says_who_holds_it_and_what_to_remove(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / ".lock.held"
    path.write_text('{"pid": 12, "host": "another-machine"}')
    remover = f"import time, pathlib; time.sleep(0.5); pathlib.Path({str(path)!r}).unlink()"
    process = subprocess.Popen([sys.executable, "-c", remover])
    with MarkerLock(path):
        assert [record.message for record in caplog.records] == [
            f"{path} is held by process 12 on another-machine; if that has ended, remove the file"
        ]
    process.wait()


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
    note = locks.this_process()
    assert note["host"] == socket.gethostname()
    assert not has_ended(note)
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert has_ended({"pid": done.pid, "host": note["host"]})


def test_a_sweep_is_trained_and_read_where_files_cannot_be_locked(
    no_flock: Callable[[int], None],
    cli: Callable[..., CliResult],
    small: list[str],
    tmp_path: Path,
) -> None:
    no_flock(errno.ENOLCK)
    status, _, said = cli(*small, "method=heft", "epochs=1", "sweep=s")
    assert status == 0, said
    assert len(list(tmp_path.glob("outputs/stages/*/result.json"))) == 3
    assert not list(tmp_path.rglob("*.held"))
    assert said.count("files cannot be locked where ") == 1
    store = Store(tmp_path / "outputs")
    assert {store.state(path.name) for path in tmp_path.glob("outputs/stages/*")} == {"complete"}
