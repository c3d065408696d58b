"""W&B that cannot be reached, never answers, or refuses the key: training does not notice."""

import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import CliResult
from tests.tracking.conftest import HEFT, Track
from tests.tracking.wandb_server import KEY, WandbServer, serving

Cli = Callable[..., CliResult]


@contextmanager
def unwilling(how: str) -> Iterator[str]:
    """An address where W&B is not as it should be."""
    if how == "refuses the key":
        with serving() as server:
            server.refuses = True
            yield server.url
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if how == "never answers":
            listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("is closed", "connection refused"),
        ("never answers", "deadline|[Tt]ime(d )?out"),
        ("refuses the key", "not logged in.*wandb login"),
    ],
)
def test_the_sweep_ends_well_and_soon_and_says_how_to_send_later(
    cli: Cli,
    track: Track,
    small: list[str],
    sweep: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    words: str,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    outputs = sweep.parent.parent
    if how == "is closed":  # with training; the others find its stages complete
        shutil.rmtree(outputs / "stages")
    asked = [*small, "-m", "method=lora,heft", "epochs=2", "sweep=new", "tracking=wandb"]
    with unwilling(how) as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        started = time.monotonic()
        status, out, err = cli(*asked, "tracking.finish_seconds=8", output_dir=outputs)
        took = time.monotonic() - started
    assert status == 0, out + err
    assert "Traceback" not in out + err
    folder = outputs / "sweeps/new"
    assert (folder / "results.csv").read_text().count("complete") == 2
    (told,) = [line for line in out.splitlines() if line.startswith("! ")]
    assert "W&B did not accept 2 runs" in told
    assert re.search(words, told), told
    assert f"python -m heft_pipeline.tracking {folder}" in told
    assert took < 45
    if how == "is closed":
        with serving() as server:
            monkeypatch.setenv("WANDB_BASE_URL", server.url)
            assert track(folder).returncode == 0
            assert server.named(HEFT).summary["status"] == "complete"
            assert len(server.runs) == 2


def test_a_later_sending_that_fails_says_so_and_has_exit_status_1(
    sweep: Path, track: Track, server: WandbServer
) -> None:
    server.refuses = True
    done = track(sweep)
    assert done.returncode == 1
    assert done.stdout.count("did not accept 2 runs") == 1
    assert "Traceback" not in done.stdout + done.stderr
    server.refuses = False
    assert track(sweep).returncode == 0
    assert len(server.runs) == 2
