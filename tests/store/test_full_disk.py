"""A disk that is full is one message that says where, and the same command goes on once it is not.

The disk is real: a small tmpfs, which only root can mount.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors import safe_open

from heft_pipeline.report import write
from heft_pipeline.stage import disk_space, run_stage
from heft_pipeline.training.checkpoint import Checkpoints
from tests.conftest import CliResult

Cli = Callable[..., CliResult]
_WAY_OUT = "No space left on device; free some space there, or choose another place with "


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


@pytest.fixture
def unforeseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate of what will be written finds nothing, as where another program fills a disk."""
    nothing = disk_space.DiskNeed(0, 0, 0)
    monkeypatch.setattr(disk_space, "disk_need", lambda *_: nothing)


def asked(small: list[str], *more: str) -> list[str]:
    """A run that writes a checkpoint at each step."""
    fast = ["training.log_every_steps=1", "training.checkpoint_every_seconds=1e-9"]
    return [*small, "epochs=1", "sweep=s", *fast, *more]


def fill(disk: Path) -> None:
    """Leave no room on a disk."""
    with (disk / "ballast").open("wb", buffering=0) as file:
        for block in (65536, 4096, 1):
            try:
                while True:
                    file.write(b"x" * block)
            except OSError:
                continue


def left_over(folder: Path) -> list[Path]:
    """Parts of files that never became whole."""
    return [path for path in folder.rglob("*") if path.suffix == ".partial" or (
        path.name.startswith(".") and path.suffix[1:].isdigit())]  # fmt: skip


@pytest.mark.parametrize("free_kib", [96, 192])
def test_a_disk_that_is_too_small_is_refused_before_training(
    free_kib: int, disk: Path, cli: Cli, small: list[str]
) -> None:
    ballast = disk / "ballast"
    ballast.write_bytes(b"x" * (2048 - free_kib) * 1024)
    status, _, said = cli(*asked(small, "method=heft"), output_dir=disk / "outputs")
    assert status == 1
    assert said.startswith(f"Error: output_dir={disk / 'outputs'} lacks room: 3 stages need about ")
    assert len(said.splitlines()) == 1
    assert not list((disk / "outputs").glob("stages/*"))
    ballast.unlink()
    status, _, said = cli(*asked(small, "method=heft"), output_dir=disk / "outputs")
    assert status == 0, said


@pytest.mark.parametrize("held", [1, 3])
def test_a_disk_that_fills_up_in_training_leaves_the_last_checkpoint_and_training_goes_on(
    held: int, disk: Path, cli: Cli, small: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    save, saved = Checkpoints.save, []

    def filled(self: Checkpoints) -> None:
        saved.append(1)
        if len(saved) == held + 1:
            fill(disk)
        save(self)

    monkeypatch.setattr(Checkpoints, "save", filled)
    run = asked(small, "method=lora", "report.base_model=false")
    status, _, said = cli(*run, output_dir=disk / "outputs")
    assert status == 1
    assert len(saved) == held + 1, "training stopped there"
    assert "Traceback" not in said
    (error,) = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert _WAY_OUT in error
    assert not left_over(disk)
    (last,) = disk.glob("outputs/stages/*/checkpoint/last.safetensors")
    with safe_open(last, framework="pt") as file:
        assert json.loads(file.metadata()["heft"])["counters"]["step"] == held
    (disk / "ballast").unlink()
    status, _, said = cli(*run, output_dir=disk / "outputs")
    assert status == 0, said
    (result,) = disk.glob("outputs/stages/*/result.json")
    assert json.loads(result.read_text())["resumes"] == 1
    monkeypatch.setattr(Checkpoints, "save", save)
    cli(*run, output_dir=tmp_path / "undisturbed")
    (other,) = tmp_path.glob("undisturbed/stages/*/result.json")
    for name in ("adapter/adapter_model.safetensors", "predictions.parquet"):
        assert (result.parent / name).read_bytes() == (other.parent / name).read_bytes()


def test_a_disk_that_fills_up_in_evaluation_costs_no_training(
    disk: Path, cli: Cli, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    step = run_stage.Trainer._step
    wrote = run_stage.write_predictions

    def counted(self: run_stage.Trainer, *examples: object) -> None:
        steps.append(1)
        step(self, *examples)  # type: ignore[arg-type]

    def filled(*given: object) -> None:
        fill(disk)
        wrote(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(run_stage.Trainer, "_step", counted)
    monkeypatch.setattr(run_stage, "write_predictions", filled)
    run = asked(small, "method=lora", "report.base_model=false")
    status, out, said = cli(*run, output_dir=disk / "outputs")
    assert status == 1
    assert "predictions.parquet" in out, out
    assert _WAY_OUT in out
    assert "Traceback" not in said
    assert not left_over(disk)
    assert not list(disk.glob("outputs/stages/*/predictions.parquet"))
    (disk / "ballast").unlink()
    monkeypatch.setattr(run_stage, "write_predictions", wrote)
    trained = len(steps)
    status, _, said = cli(*run, output_dir=disk / "outputs")
    assert status == 0, said
    assert len(steps) == trained


@pytest.mark.parametrize("free_kib", [0, 40, 160])
def test_a_disk_that_fills_up_in_the_report_leaves_no_part_of_it(
    free_kib: int, disk: Path, cli: Cli, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = write.make_report

    def filled(*given: object) -> write.Report:
        used = shutil.disk_usage(disk)
        (disk / "ballast").write_bytes(b"x" * (used.free - free_kib * 1024))
        return make(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(write, "make_report", filled)
    run = asked(small, "method=lora", "-m")
    status, _, said = cli(*run, output_dir=disk / "outputs")
    assert status == 1
    assert "Traceback" not in said
    (error,) = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert str(disk) in error
    assert _WAY_OUT in error
    sweep = disk / "outputs" / "sweeps" / "s"
    assert not left_over(disk)
    assert not (sweep / "report.html").exists()
    assert all(path.stat().st_size for path in sweep.glob("figures/*"))
    (disk / "ballast").unlink()
    monkeypatch.setattr(write, "make_report", make)
    status, out, said = cli(*run, output_dir=disk / "outputs")
    assert status == 0, said
    assert "2 complete" in out, "nothing is trained again"
    assert (sweep / "report.html").exists()


@pytest.mark.parametrize("free_kib", [0, 16, 48, 96, 192])
@pytest.mark.usefixtures("unforeseen")
def test_a_full_disk_is_one_message_and_the_same_command_goes_on_later(
    free_kib: int, disk: Path, cli: Cli, small: list[str]
) -> None:
    run = asked(small, "method=heft")
    ballast = disk / "ballast"
    ballast.write_bytes(b"x" * (2048 - free_kib) * 1024)
    status, _, said = cli(*run, output_dir=disk / "outputs")
    assert status == 1
    errors = [line for line in said.splitlines() if "No space left on device" in line]
    assert errors, said
    lacking = [line for line in errors if str(disk) not in line or _WAY_OUT not in line]
    assert not lacking
    assert "Traceback" not in said
    assert not left_over(disk)
    ballast.unlink()
    status, _, said = cli(*run, output_dir=disk / "outputs")
    assert status == 0, said
    assert len(list((disk / "outputs").glob("stages/*/result.json"))) == 3
