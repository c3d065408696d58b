"""A disk that is full is one message that says where, and the same command goes on once it is not.

The disk is real: a small tmpfs, which only root can mount.
"""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import CliResult


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("free_kib", [0, 16, 48, 96, 192])
def test_a_full_disk_is_one_message_and_the_same_command_goes_on_later(
    free_kib: int, disk: Path, cli: Callable[..., CliResult], small: list[str]
) -> None:
    asked = [*small, "method=heft", "epochs=1", "sweep=s", "training.log_every_steps=1"]
    asked += ["training.checkpoint_every_seconds=0.001"]
    ballast = disk / "ballast"
    ballast.write_bytes(b"x" * (2048 - free_kib) * 1024)
    status, _, said = cli(*asked, output_dir=disk / "outputs")
    assert status == 1
    errors = [line for line in said.splitlines() if "No space left on device" in line]
    assert errors, said
    way_out = "No space left on device; free some space there, or choose another place with "
    lacking = [line for line in errors if str(disk) not in line or way_out not in line]
    assert not lacking
    assert "Traceback" not in said
    assert not list((disk / "outputs").rglob("*.[0-9]*")), "parts of files are left"
    ballast.unlink()
    status, _, said = cli(*asked, output_dir=disk / "outputs")
    assert status == 0, said
    assert len(list((disk / "outputs").glob("stages/*/result.json"))) == 3
