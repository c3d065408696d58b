"""What is written is open to whom the umask says, and who may only read changes nothing."""

import ctypes
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from heft_pipeline.files.process_notes import this_process
from heft_pipeline.store.stage_folders import Store

ROOT = Path(__file__).parents[2]


def without_roots_powers() -> None:
    """Make the process that is started next obey permissions, also where root starts it."""
    if os.geteuid() == 0:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def trained(mask: int, method: str, small: list[str], folder: Path) -> Path:
    """The outputs of a run that was made under a umask."""
    asked = ["-m", *small, f"method={method}", "epochs=1", "sweep=s", "tracking=tensorboard"]
    asked += ["training.checkpoint_every_seconds=0.001", f"output_dir={folder / 'outputs'}"]
    command = [sys.executable, "-m", "heft_pipeline", *asked]
    done = subprocess.run(
        command, cwd=ROOT, umask=mask, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "outputs"


@pytest.fixture(scope="module")
def finished(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of a HEFT run."""
    return trained(0o022, "heft", small, tmp_path_factory.mktemp("finished"))


def require_open(outputs: Path, mask: int) -> None:
    closed = [
        str(path)
        for path in outputs.rglob("*")
        if path.stat().st_mode & 0o777 != (0o777 if path.is_dir() else 0o666) & ~mask
    ]
    assert not closed


def test_every_file_is_open_to_whom_the_umask_says(finished: Path) -> None:
    names = {path.name for path in finished.rglob("*")}
    assert {"adapter_model.safetensors", "reft.safetensors", "predictions.parquet", "report.html",
            "adapter_config.json", "result.json", "plan.json", "results.csv"} <= names  # fmt: skip
    require_open(finished, 0o022)


def test_a_stricter_umask_holds_for_every_file(small: list[str], tmp_path: Path) -> None:
    require_open(trained(0o027, "joint", small, tmp_path), 0o027)


def test_a_checkpoint_is_open_to_whom_the_umask_says(tmp_path: Path) -> None:
    import torch

    from heft_pipeline.training.checkpoint import write

    before = os.umask(0o027)
    try:
        write(tmp_path / "checkpoint" / "last.safetensors", {"a": torch.ones(2)}, {"step": 1})
    finally:
        os.umask(before)
    (file,) = (tmp_path / "checkpoint").iterdir()
    assert file.stat().st_mode & 0o777 == 0o640


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def visit(*command: object) -> tuple[int, str]:
    """Run a command as somebody whom permissions hold for."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, preexec_fn=without_roots_powers,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def shown(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the outputs that can only be read, with an owner's note in an unfinished stage."""
    outputs = tmp_path / "shown"
    shutil.copytree(finished, outputs)
    stage = unfinished(outputs)
    (stage / "result.json").unlink()
    (stage / ".lock.held").write_text(json.dumps(this_process()))
    paths = [outputs, *outputs.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    status, _ = visit("-c", f"open({str(outputs / 'new')!r}, 'w')")
    assert status == 1, "it can be written to"
    yield outputs
    for path in paths:
        path.chmod(0o755 if path.is_dir() else 0o644)


def unfinished(outputs: Path) -> Path:
    """The folder of the ReFT stage."""
    return next((outputs / "stages").glob("*/adapter/reft.safetensors")).parents[1]


def test_who_may_only_read_sees_a_sweep_and_writes_nothing(shown: Path, tmp_path: Path) -> None:
    before, sweep = contents(shown), shown / "sweeps" / "s"
    status, said = visit("-m", "launch", "status", sweep)
    assert status == 0, said
    assert "1 running" in said
    lease = unfinished(shown) / ".lock.held"
    lease.chmod(0o644)
    lease.write_text(json.dumps(this_process() | {"started": 1}))  # a process that has ended
    before = contents(shown)
    status, said = visit("-m", "launch", "status", sweep)
    assert status == 0, said
    assert "running" not in said
    stage = next((shown / "stages").glob("*/adapter/adapter_model.safetensors")).parents[1]
    for command in (
        ["heft_pipeline.report", sweep, "--to", tmp_path / "report"],
        ["heft_pipeline.use.export", stage, "--to", tmp_path / "export"],
    ):
        status, said = visit("-m", *command)
        assert status == 0, said
    assert contents(shown) == before


def test_a_report_that_cannot_be_written_says_where_it_can(shown: Path) -> None:
    sweep = shown / "sweeps" / "s"
    status, said = visit("-m", "heft_pipeline.report", sweep)
    assert status == 1
    (line,) = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert str(sweep) in line
    assert line.endswith("Permission denied; choose another place with --to DIR")
    assert "Traceback" not in said


def test_a_lock_that_cannot_be_looked_at_counts_as_held_unless_its_process_is_gone(
    store: Store,
) -> None:
    folder = store.folder("key")
    folder.mkdir(parents=True)
    (folder / ".lock").touch(0o000)
    code = (
        "import sys; from pathlib import Path;"
        "from heft_pipeline.store.stage_folders import Store;"
        "print(Store(Path(sys.argv[1])).owner('key') is not None)"
    )

    def seen_as_held(note: dict[str, object], renewed: float | None = None) -> bool:
        (folder / ".lock.held").write_text(json.dumps(note))
        os.utime(folder / ".lock.held", (renewed, renewed) if renewed is not None else None)
        status, said = visit("-c", code, store.output_dir)
        assert status == 0, said
        return said.strip() == "True"

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert seen_as_held(this_process())
    assert seen_as_held({"pid": 1, "host": "another-machine"})
    assert not seen_as_held({"pid": gone.pid, "host": this_process()["host"]})
    (folder / ".lock").chmod(0o444)
    assert seen_as_held({"pid": 1, "host": "another-machine"})  # its lock may not reach this one
    long_ago = time.time() - 1000
    assert not seen_as_held({"pid": 1, "host": "another-machine"}, long_ago)
