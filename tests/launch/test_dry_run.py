"""What a dry run says before anything is trained."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import CliResult

Cli = Callable[..., CliResult]
DRY = ["-m", "hydra.launcher.dry_run=true"]


@pytest.mark.parametrize("launcher", ["local", "slurm"])
def test_the_cost_is_said_for_each_stage_and_for_the_sweep(
    cli: Cli, small: list[str], tmp_path: Path, launcher: str
) -> None:
    asked = [*small, *DRY, "method=lora,reft,heft", "epochs=1,20", "seed=0,1"]
    status, out, err = cli(
        *asked, f"hydra/launcher={launcher}", "hydra.launcher.dry_run_gpu=a100-80g",
        "hydra.launcher.dry_run_utilisation=0.5", "hydra.launcher.gpus_per_stage=1",
    )  # fmt: skip
    assert status == 0, err
    assert "cost on a100-80g at 50% of 312 TFLOP/s" in out
    table = out.partition("cost on")[2].splitlines()
    rows = [line for line in table if "@" in line]
    assert len(rows) == 6, "one for each method and number of epochs"
    assert all("x 2" in row for row in rows)
    assert any("all together" in line and "x 13" in line for line in table)
    assert "13 stages will compute in float32" in out
    assert max(map(len, table)) <= 80
    assert not (tmp_path / "outputs" / "stages").exists()


def test_more_epochs_cost_more_and_another_gpu_takes_longer(cli: Cli, small: list[str]) -> None:
    def hours(*more: str) -> float:
        status, out, err = cli(*small, *DRY, "method=lora", *more)
        assert status == 0, err
        (line,) = [line for line in out.splitlines() if "all together" in line]
        return float(line.split()[-1].replace(",", ""))

    asked = ["lora.epochs=100", "hydra.launcher.dry_run_utilisation=1e-11"]
    once = hours(*asked)
    assert hours(*asked, "hydra.launcher.dry_run_gpu=v100-32g") == pytest.approx(
        once * 989 / 125, rel=0.02
    )
    assert hours("lora.epochs=200", asked[1]) == pytest.approx(2 * once, rel=0.02)


def test_stages_that_may_not_fit_are_pointed_out(
    cli: Cli, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from launch.gpus import GPUS, Gpu

    monkeypatch.setitem(GPUS, "t4", Gpu(65, 0))
    status, out, _ = cli(*small, *DRY, "method=lora", "hydra.launcher.dry_run_gpu=t4")
    assert status == 0
    assert "2 stages may not fit into the 0 GiB of t4" in out


def test_an_unknown_gpu_is_refused_with_the_known_ones(cli: Cli) -> None:
    status, _, err = cli(*DRY, "method=lora", "hydra.launcher.dry_run_gpu=h1000")
    assert status == 1
    assert "hydra.launcher.dry_run_gpu=h1000 is not one of v100-16g" in err
    assert "mi300x, none" in err


def test_a_model_that_cannot_be_read_does_not_hide_the_plan(
    cli: Cli, small: list[str], small_model: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(small_model, broken)
    config = json.loads((broken / "config.json").read_text()) | {"model_type": "nosuch"}
    (broken / "config.json").write_text(json.dumps(config))
    status, out, err = cli(*small, *DRY, "method=lora", f"model.id={broken},{small_model}")
    assert status == 0, err
    assert "2 lora" in out
    said = f"(lora@3 r8 s0 with broken): model.id={broken} has no config"
    assert f"no estimate for 1 stage {said}" in out
    assert "x 2" in out, "the others are in the table"


def test_the_papers_own_times_stand_beside_its_rows(
    cli: Cli, small_model: Path, small_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_model, tmp_path / "Llama-2-7b-chat-hf")
    shutil.copytree(small_data, tmp_path / "boolq")
    asked = [f"model.id={tmp_path / 'Llama-2-7b-chat-hf'}", f"data.path={tmp_path / 'boolq'}"]
    asked += ["+experiment=heft_paper", "reft.reuse_budget_gib=1e-6", *DRY]
    status, out, err = cli(*asked)
    assert status == 0, err
    said = " ".join(out.split())
    assert "ReFT 20 2 h 19 min" in said
    assert "19 h 45 min in all" in said
    status, out, err = cli(*asked, "lora.alpha=16")
    assert status == 0, err
    assert "LoRA 20" not in out
    assert "2 h 19 min in all" in " ".join(out.split())
