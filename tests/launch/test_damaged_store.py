"""What is done to a finished store is found by the same command, said, and made good again."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree, rmtree

import pytest

from benchmarks.same_results import differences
from heft_pipeline.__main__ import main as heft_pipeline
from heft_pipeline.command_line import warnings
from heft_pipeline.files.sealed import copy_of
from heft_pipeline.report.__main__ import main as report
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.use.export import main as export
from launch.__main__ import main as launch
from tests.conftest import CliResult

ASKED = ["method=heft", "epochs=1", "sweep=s"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, small: list[str]) -> Path:
    """The output folder of a sweep that nothing has happened to."""
    outputs = tmp_path_factory.mktemp("undisturbed") / "outputs"
    command = [sys.executable, "-m", heft_pipeline.__module__, *small, *ASKED]
    subprocess.run([*command, f"output_dir={outputs}"], check=True, capture_output=True)
    return outputs


@dataclass(frozen=True)
class Damaged:
    """A copy of the undisturbed output folder that something is done to.

    Attributes:
        outputs: The folder.
        original: The undisturbed one.
    """

    outputs: Path
    original: Path

    def stage(self, kind: str) -> Path:
        """The folder of a stage: ``lora``, ``reft`` or ``base``."""
        for path in self.outputs.glob("stages/*/stage.json"):
            if json.loads(path.read_text())["kind"] == kind:
                return path.parent
        raise AssertionError(f"there is no {kind}")

    def differences(self) -> list[str]:
        """What differs from the undisturbed folder."""
        found: list[str] = []
        for folder in sorted(self.original.glob("stages/*")):
            found += differences(folder, self.outputs / "stages" / folder.name)
        return found


@pytest.fixture
def damaged(undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Damaged:
    monkeypatch.setattr(warnings, "_said", set())
    return Damaged(copytree(undisturbed, tmp_path / "outputs"), undisturbed)


def flip(path: Path, at: float = 0.9) -> None:
    """Change one bit of a file; its size and times stay, as when a disk forgets."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    rmtree(path) if path.is_dir() else path.unlink()


def praise(path: Path) -> None:
    """Raise a result's accuracy by hand."""
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"accuracy": 0.99}))


SCORED, TRAINED, RESTORED = (
    "the stage is scored again",
    "the stage is trained again",
    "it is restored",
)
FILES = {
    "adapter/adapter_config.json": TRAINED,
    "predictions.parquet": SCORED,
    "result.json": RESTORED,
    "metrics.jsonl": RESTORED,
    "stage.json": RESTORED,
}
#: Of an adapter only the sizes are looked at where nothing is trained on it; a result that is gone
#: is that of an unfinished stage.
NOT_FOUND = {("adapter/adapter_config.json", flip), ("result.json", remove)}
CASES = [
    *(
        ("lora", name, how, done)
        for name, done in FILES.items()
        for how in (cut, empty, flip, remove)
        if (name, how) not in NOT_FOUND
    ),
    ("lora", "result.json", praise, RESTORED),
    ("lora", "adapter/adapter_model.safetensors", cut, TRAINED),
    ("lora", "adapter/adapter_model.safetensors", remove, TRAINED),
    ("lora", "adapter", remove, TRAINED),
    ("reft", "adapter/reft.safetensors", remove, TRAINED),
    ("reft", "predictions.parquet", flip, SCORED),
    ("reft", "predictions.parquet", remove, SCORED),
    ("reft", "reft_edits.csv", flip, SCORED),
    ("base", "predictions.parquet", remove, SCORED),
]


@pytest.mark.parametrize(
    ("kind", "name", "how", "done"), CASES, ids=[f"{k}-{n}-{h.__name__}" for k, n, h, _ in CASES]
)
def test_the_same_command_finds_damage_says_it_and_makes_it_good(
    kind: str,
    name: str,
    how: Callable[[Path], None],
    done: str,
    damaged: Damaged,
    cli: Callable[..., CliResult],
    small: list[str],
) -> None:
    folder = damaged.stage(kind)
    how(folder / name)
    status, out, err = cli(*small, *ASKED, output_dir=damaged.outputs)
    assert status == 0, out + err
    assert f"{folder / name}" in out and done in out, out
    assert not damaged.differences()
    aside = list((folder / "damaged").glob(f"*/{name.split('/')[0]}"))
    assert aside or how is remove
    status, out, _ = cli(*small, *ASKED, output_dir=damaged.outputs)
    assert status == 0 and "3 complete" in out and "!" not in out, "it is whole again"


@pytest.mark.parametrize(
    "name", ["adapter/adapter_model.safetensors", "adapter/adapter_config.json"]
)
def test_no_stage_is_trained_on_an_adapter_with_a_flipped_bit(
    name: str, damaged: Damaged, cli: Callable[..., CliResult], small: list[str]
) -> None:
    rmtree(damaged.stage("reft"))
    flip(damaged.stage("lora") / name)
    status, out, err = cli(*small, *ASKED, output_dir=damaged.outputs)
    assert status == 0, out + err
    assert f"{name} does not fit its checksum; the stage is trained again" in out
    assert not damaged.differences()


def test_an_adapter_that_breaks_while_the_sweep_runs_is_not_trained_on(
    damaged: Damaged,
    cli: Callable[..., CliResult],
    small: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rmtree(damaged.stage("reft"))
    adapter = damaged.stage("lora") / "adapter/adapter_model.safetensors"
    monkeypatch.setattr("launch.execute_plan.look_over", lambda *_: flip(adapter))
    status, out, err = cli(*small, *ASKED, output_dir=damaged.outputs)
    assert status == 1
    assert f"{adapter} does not fit its checksum, so lora@1 r8 s0 cannot be used" in out + err
    monkeypatch.undo()
    monkeypatch.setattr(warnings, "_said", set())
    assert cli(*small, *ASKED, output_dir=damaged.outputs)[0] == 0
    assert not damaged.differences()


def test_a_damaged_adapter_is_not_exported(
    damaged: Damaged, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(damaged.stage("lora") / "adapter/adapter_model.safetensors")
    for kind in ("lora", "reft"):
        assert export([str(damaged.stage(kind)), "--to", str(tmp_path / "to")]) == 1
        said = capsys.readouterr().err
        assert "does not fit its checksum, so lora@1 r8 s0 cannot be used" in said
        assert not (tmp_path / "to").exists()


def test_readers_say_damaged_and_change_nothing(
    damaged: Damaged, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = damaged.stage("reft")
    flip(folder / "predictions.parquet")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert report(["s", "--output-dir", str(damaged.outputs)]) == 0
    shown = capsys.readouterr().out
    assert "damaged" in shown
    csv = (damaged.outputs / "sweeps/s/results.csv").read_text()
    assert ",damaged," in csv
    remove(folder / "predictions.parquet")
    assert launch(["status", "s", "--output-dir", str(damaged.outputs)]) == 0
    assert "damaged" in capsys.readouterr().out
    del before[folder / "predictions.parquet"]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert Store(damaged.outputs).state(folder.name) == "damaged"


@pytest.mark.parametrize("how", [cut, empty, flip])
def test_a_plan_that_breaks_is_taken_from_its_copy(
    how: Callable[[Path], None],
    damaged: Damaged,
    cli: Callable[..., CliResult],
    small: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = damaged.outputs / "sweeps/s/plan.json"
    before = json.loads(path.read_text())
    how(path)
    assert launch(["status", "s", "--output-dir", str(damaged.outputs)]) == 0
    assert f"{path} " in capfd.readouterr().err
    status, _, err = cli(*small, "method=lora", "epochs=1", "sweep=s", output_dir=damaged.outputs)
    assert status == 0, err
    after = json.loads(path.read_text())
    assert [run["name"] for run in after["runs"]][: len(before["runs"])] == [
        run["name"] for run in before["runs"]
    ]
    assert after["stages"].items() >= before["stages"].items()


@pytest.mark.parametrize("how", [cut, empty, flip])
def test_a_plan_without_a_copy_is_rebuilt(
    how: Callable[[Path], None], damaged: Damaged, cli: Callable[..., CliResult], small: list[str]
) -> None:
    path = damaged.outputs / "sweeps/s/plan.json"
    before = json.loads(path.read_text())
    remove(copy_of(path))
    how(path)
    status, out, err = cli(*small, *ASKED, output_dir=damaged.outputs)
    assert status == 0, err
    assert f"{path} " in err and "has no copy; it is written anew" in err
    assert "3 complete" in out
    assert json.loads(path.read_text())["stages"] == before["stages"]


@pytest.mark.parametrize("how", [cut, empty, flip])
def test_a_tokenised_task_that_breaks_is_tokenised_again(
    how: Callable[[Path], None], damaged: Damaged, cli: Callable[..., CliResult], small: list[str]
) -> None:
    from heft_pipeline.stage.cached_inputs import _task

    rmtree(damaged.outputs / "stages")
    for path in damaged.outputs.glob(".cache/tokenized/*"):
        how(path)
    _task.cache_clear()
    status, out, err = cli(*small, *ASKED, output_dir=damaged.outputs)
    assert status == 0, out + err
    assert "the task is tokenised again" in err
    assert not damaged.differences()


def test_a_stage_of_a_version_without_manifests_is_used_and_what_it_lacks_is_made(
    damaged: Damaged, cli: Callable[..., CliResult], small: list[str]
) -> None:
    for folder in damaged.outputs.glob("stages/*"):
        data = json.loads((folder / "result.json").read_text())
        del data["files"], data["sha256"]
        (folder / "result.json").write_text(json.dumps(data))
        rmtree(folder / ".copies")
    status, out, _ = cli(*small, *ASKED, output_dir=damaged.outputs)
    assert status == 0 and "3 complete" in out
    remove(damaged.stage("reft") / "predictions.parquet")
    status, out, err = cli(*small, *ASKED, output_dir=damaged.outputs)
    assert status == 0, out + err
    assert "predictions.parquet is missing; the stage is scored again" in out
    assert not damaged.differences()
    assert json.loads((damaged.stage("reft") / "result.json").read_text())["files"]


def test_both_a_result_and_its_copy_broken_means_training(
    damaged: Damaged, cli: Callable[..., CliResult], small: list[str]
) -> None:
    for path in (file := damaged.stage("lora") / "result.json", copy_of(file)):
        cut(path)
    status, out, err = cli(*small, *ASKED, output_dir=damaged.outputs)
    assert status == 0, out + err
    assert f"{file} is cut off or broken" in out
    assert "the stage is trained again" in out
    assert not damaged.differences()
