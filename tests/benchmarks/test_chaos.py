"""A round of chaos, and whether it would see what goes wrong."""

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.chaos import faults
from benchmarks.chaos.__main__ import figures
from benchmarks.chaos.commands import Command
from benchmarks.chaos.rounds import Arena, Undisturbed, make_undisturbed, mismatches

SEED, ROUND = 28, 1


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return make_undisturbed(tmp_path_factory.mktemp("chaos") / "undisturbed")


def test_whatever_happens_to_a_sweep_it_ends_with_the_same(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Without the lock of a dead host, after which a minute is waited."""
    kinds = ["kill", "full_disk", "read_only", "flip", "clock"]
    played = Arena(tmp_path / "round", undisturbed, None, kinds).play(ROUND, SEED)
    assert played.faults
    assert not [*played.mismatches, *played.flaws], played
    assert "| mismatches | 0 |" in figures([played])


@pytest.mark.parametrize(
    "name",
    ["stages/*/predictions.parquet", "stages/*/adapter/reft.safetensors", "stages/*/metrics.jsonl",
     "stages/*/result.json", "sweeps/*/plan.json", "sweeps/*/results.csv"],
)  # fmt: skip
def test_what_is_missing_or_differs_is_a_mismatch(
    name: str, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    outputs = shutil.copytree(undisturbed.outputs, tmp_path / "outputs")
    assert not mismatches(outputs, undisturbed.outputs)
    other, *files = sorted(outputs.glob(name), key=lambda path: -path.stat().st_size)
    if files:  # what belongs to another stage
        shutil.copy(files[-1], other)
    else:
        other.write_text(other.read_text().replace("lora", "reft"))
    assert mismatches(outputs, undisturbed.outputs)
    other.unlink()
    assert mismatches(outputs, undisturbed.outputs)


@pytest.fixture
def scene(undisturbed: Undisturbed, tmp_path: Path) -> Iterator[faults.Scene]:
    """A copy of the undisturbed sweep, and a command that sleeps."""
    (tmp_path / "sleeping.py").write_text("import time; time.sleep(60)")
    outputs = shutil.copytree(undisturbed.outputs, tmp_path / "outputs")
    command = Command(["sleeping"], tmp_path / "log", {"PYTHONPATH": str(tmp_path)})
    with ExitStack() as undo:
        yield faults.Scene(
            outputs, undisturbed.stages, command, None, tmp_path / "clock", random.Random(1), undo
        )
    command.process.kill()
    command.process.wait()


def test_each_fault_does_what_it_says(scene: faults.Scene) -> None:
    before = {path: path.read_bytes() for path in scene.outputs.rglob("*") if path.is_file()}
    assert faults.flip(scene).startswith("flipped bit in ")
    changed = [path for path, content in before.items() if path.read_bytes() != content]
    assert len(changed) == 1
    ours, theirs = (int.from_bytes(c) for c in (changed[0].read_bytes(), before[changed[0]]))
    assert (ours ^ theirs).bit_count() == 1
    assert faults.read_only(scene) == "read-only folder"
    folders = [scene.outputs, *(path for path in scene.outputs.rglob("*") if path.is_dir())]
    assert sum(not path.stat().st_mode & 0o222 for path in folders) == 1
    scene.undo.close()
    assert not sum(not path.stat().st_mode & 0o222 for path in folders)
    assert faults.stale_lock(scene) == "lock of a dead host"
    (lease,) = scene.outputs.rglob("*.held")
    assert json.loads(lease.read_text())["host"] == faults.DEAD_HOST
    assert scene.command.runs()
    assert " to " in faults.kill(scene)
    assert scene.command.wait(10)
