"""An adapter that was trained elsewhere becomes a stage of a store."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from heft_pipeline.command_line import warnings
from heft_pipeline.store.__main__ import main
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.use.export import main as export
from tests.conftest import CliResult

Cli = Callable[..., CliResult]


@pytest.fixture(scope="module")
def trained(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of somebody else, with a HEFT run."""
    outputs = tmp_path_factory.mktemp("theirs") / "outputs"
    asked = [*small, "method=heft", "epochs=1", "sweep=s", f"output_dir={outputs}"]
    command = [sys.executable, "-m", "heft_pipeline", *asked]
    subprocess.run(command, check=True, capture_output=True)
    return outputs


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "_said", set())


@pytest.fixture(scope="module")
def saved(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The adapter of each of its stages as PEFT and pyreft write them, by its kind."""
    found, outputs, to = {}, trained, tmp_path_factory.mktemp("saved")
    for path in outputs.glob("stages/*/stage.json"):
        kind = json.loads(path.read_text())["kind"]
        if kind != "base":
            assert export([str(path.parent), "--to", str(to / kind)]) == 0
            (found[kind],) = {config.parent for config in (to / kind).rglob(
                "adapter_config.json" if kind == "lora" else "config.json")}  # fmt: skip
    return found


def adopt(store: Path, folder: Path, *settings: str) -> int:
    return main(["adopt", str(store), str(folder), *settings])


def predictions(outputs: Path, kind: str) -> pd.DataFrame:
    for path in outputs.glob("stages/*/stage.json"):
        if json.loads(path.read_text())["kind"] == kind:
            return pd.read_parquet(path.with_name("predictions.parquet"))
    raise AssertionError(kind)


def test_adopted_adapters_are_the_stages_of_a_sweep_that_trains_nothing(
    small: list[str], trained: Path, saved: dict[str, Path], tmp_path: Path, cli: Cli,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    ours, stated = tmp_path / "ours", [*small, "method=heft", "epochs=1"]
    assert adopt(ours, saved["lora"], *small, "method=lora", "epochs=1") == 0
    assert adopt(ours, saved["reft"], *stated) == 0
    assert "accuracy" in capfd.readouterr().out
    for kind in ("lora", "reft"):
        pd.testing.assert_frame_equal(
            predictions(ours, kind), predictions(trained, kind), atol=1e-5, rtol=0
        )
    never = "hydra.launcher.train=never"
    status, said, error = cli(*stated, never, "report.base_model=false", "sweep=s", output_dir=ours)
    assert status == 0, error
    assert "unknown" in said
    assert "trained elsewhere, with settings as they were stated" in " ".join(said.split())
    page = (ours / "sweeps" / "s" / "report.html").read_text()
    assert "is believed" in page
    assert "may be rounding" not in page
    assert "nan" not in page.lower().split()
    table = pd.read_csv(ours / "sweeps" / "s" / "results.csv")
    assert table[["train_seconds", "train_tflop", "peak_memory_mb"]].isna().all(axis=None)
    assert table.trainable_params.notna().all()
    assert main(["verify", str(ours), "--recompute", "2"]) == 0
    capfd.readouterr()
    assert main(["show", str(ours), "s/heft-1-r8-s0"]) == 0
    assert "adopted from" in capfd.readouterr().out


@pytest.mark.parametrize(
    "settings, message",
    [
        (["method=lora", "lora.rank=4"], "was trained with r=8, and this stage has lora.rank=4"),
        (["method=lora", "lora.rnak=8"], "rnak"),
        (["method=reft"], "config.json"),
        (["method=heft"], "stands on"),
        (["method=lora", "epochs=1,2"], "epochs"),
        (["method=lora", "data.path=/nowhere"], "data.path=/nowhere is not a folder"),
        (["method=joint"], "adopt takes a stage with one adapter"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    settings: list[str], message: str, small: list[str], saved: dict[str, Path], tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    capfd.readouterr()
    assert adopt(tmp_path / "ours", saved["lora"], *small, *settings) == 1
    said = capfd.readouterr().err
    assert message in said
    assert "init_from" not in said
    assert len(said.splitlines()) == 1
    assert not list((tmp_path / "ours").glob("stages/*/result.json"))


def test_what_a_store_has_is_not_adopted_again(
    small: list[str], trained: Path, saved: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in trained.glob("stages/*/adapter/*")}
    assert adopt(trained, saved["lora"], *small, "method=lora", "epochs=1") == 1
    assert "is in" in capfd.readouterr().err
    assert {p: p.read_bytes() for p in trained.glob("stages/*/adapter/*")} == before


def test_an_adopted_stage_that_is_damaged_is_said_and_trained(
    small: list[str], saved: dict[str, Path], tmp_path: Path, cli: Cli
) -> None:
    ours = tmp_path / "ours"
    asked = [*small, "method=lora", "epochs=1"]
    assert adopt(ours, saved["lora"], *asked) == 0
    (folder,) = ours.glob("stages/*")
    shutil.rmtree(folder / "adapter")
    assert "the stage is trained again" in cli(*asked, "sweep=s", output_dir=ours)[1]
    assert "trained_elsewhere" not in (Store(ours).result(folder.name) or {})
