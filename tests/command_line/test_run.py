"""One message for each error, whatever it is, and what nobody has foreseen is kept in a file."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from heft_pipeline.command_line.run import run_command
from heft_pipeline.errors import UserError, reason


def ended(error: BaseException, *arguments: str) -> int:
    def command(_: Sequence[str]) -> int:
        raise error

    return run_command(command, arguments, kept="All is kept.")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "free some space there, or choose another place with --output-dir DIR"),
        (errno.EDQUOT, "free some space there"),
        (errno.EACCES, "choose another place"),
        (errno.EROFS, "choose another place"),
        (errno.ENOTDIR, "choose another place"),
        (errno.ENAMETOOLONG, "shorter names"),
        (errno.ENOLCK, "files cannot be locked there"),
        (errno.EOPNOTSUPP, "files cannot be locked there"),
        (errno.EIO, "the disk or the network file system failed"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENOENT, "No such file or directory"),
    ],
)
def test_an_error_of_the_system_names_the_path_and_the_way_out(
    capsys: pytest.CaptureFixture[str], code: int, said: str
) -> None:
    assert ended(OSError(code, os.strerror(code), "/some/file")) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"Error: /some/file: {os.strerror(code)}")
    assert said in err
    assert err.count("\n") == 1


def test_an_error_without_a_path_names_the_file_that_was_at_hand(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def lock(folder: Path) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    def command(_: Sequence[str]) -> int:
        lock(Path("/some/stage"))
        return 0

    assert run_command(command, []) == 1
    err = capsys.readouterr().err
    assert "None" not in err
    assert err.startswith("Error: /some/stage: ")


def test_what_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = tmp_path / "plan.json"

    def read(path: Path) -> int:
        return len(json.loads(path.read_text(encoding="utf-8")))

    for content, said in ((b'{"a": ', "is not valid JSON"), (b"\xff", "is not utf-8 text")):
        cut.write_bytes(content)
        assert run_command(lambda _: read(cut), []) == 1
        err = capsys.readouterr().err
        assert f"Error: {cut} {said}" in err
        assert err.count("\n") == 1


def test_a_full_disk_is_said_whatever_library_meets_it() -> None:
    for error in (RuntimeError, OSError):
        said = reason(error("I/O error: No space left on device (os error 28)")) or ""
        assert "free some space" in said


@pytest.mark.parametrize(
    "error", [KeyError("old"), RecursionError("deep"), ZeroDivisionError(), OSError("odd\nlines")]
)
def test_an_unforeseen_error_is_one_line_and_its_traceback_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    assert ended(error, "--output-dir", str(tmp_path)) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"Error: {type(error).__name__}: ")
    assert "please report it" in err
    assert err.count("\n") == 1
    (log,) = tmp_path.glob("error-*.log")
    assert str(log) in err
    text = log.read_text(encoding="utf-8")
    assert "Traceback" in text
    assert f"'{tmp_path}'" in text.splitlines()[0], "the command"


def test_where_the_output_cannot_be_written_a_traceback_is_kept_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    ended(KeyError("x"), f"output_dir={tmp_path / 'none'}")
    assert f"{tmp_path}/error-" in capsys.readouterr().err

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Path, "write_text", full)
    assert ended(KeyError("x"), f"output_dir={tmp_path}") == 1
    assert "HYDRA_FULL_ERROR=1" in capsys.readouterr().err


def test_the_traceback_is_shown_where_it_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert ended(UserError("say this")) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("Error: say this\n")


def test_ctrl_c_is_one_line_also_where_a_library_makes_another_error_of_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    made_of_it = ImportError("numpy is broken")
    made_of_it.__context__ = KeyboardInterrupt()
    for error in (KeyboardInterrupt(), made_of_it):
        assert ended(error) == 130
        assert capsys.readouterr().err == "Interrupted. All is kept.\n"


SCRIPT = """
import os, signal, sys, time
from heft_pipeline.command_line.run import run_command

class Unlucky:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)

def swallowed(_):
    Unlucky()  # what is raised in a destructor is only reported
    time.sleep(5)
    return 0

def twice(_):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    finally:
        time.sleep(0.6)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
        print("not reached")

sys.exit(run_command(globals()[sys.argv[1]], kept="All is kept."))
"""


@pytest.mark.parametrize(
    ("what", "said"), [("swallowed", "Interrupted."), ("twice", "Interrupted at once.")]
)
def test_ctrl_c_is_not_lost_and_a_second_one_does_not_wait(what: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, what],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert done.returncode == 130
    assert done.stderr == f"{said} All is kept.\n"
    assert not done.stdout


@pytest.mark.parametrize(
    "given", ["tracking.tags=pilot", 'method.stages="lora,reft"', 'report.claims="a > b,c > d"']
)
def test_a_text_for_a_list_is_told_to_be_written_in_brackets(
    given: str, cli: Callable[..., tuple[int, str, str]]
) -> None:
    status, _, said = cli(given)
    key = given.split("=")[0]
    assert status == 1
    assert said.endswith(f"{key} is a list: write it in brackets, e.g. {key}=[a,b]\n")
    assert "Traceback" not in said
