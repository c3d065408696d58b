"""The launchers' settings: declared once, checked before anything is composed or trained."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from heft_pipeline.errors import UserError
from heft_pipeline.settings.schema import config_dir
from heft_pipeline.store.stage_folders import Store
from hydra_plugins.heft_launchers import LocalLauncher, SlurmLauncher
from launch.execute_plan import LauncherSettings, launcher_note, read_launcher
from launch.local.settings import LocalSettings
from launch.slurm.job_notes import JobNote
from launch.slurm.sbatch import report_flags, stage_flags
from launch.slurm.settings import SlurmSettings, limit_seconds
from tests.conftest import CliResult

Cli = Callable[..., CliResult]


@pytest.mark.parametrize(
    ("launcher", "bad"),
    [
        ("local", "workers=0"),
        ("local", "gpus_per_stage=-1"),
        ("local", "gpus=some"),
        ("slurm", "gpus_per_stage=0"),
        ("slurm", "max_parallel=0"),
        ("slurm", "max_requeues=-1"),
        ("slurm", "cpus_per_gpu=0"),
        ("slurm", "poll_seconds=0"),
        ("slurm", "time=soon"),
    ],
)
def test_a_bad_setting_is_one_message_with_a_valid_example(
    cli: Cli, tmp_path: Path, launcher: str, bad: str
) -> None:
    asked = [f"hydra/launcher={launcher}", f"hydra.launcher.{bad}", "hydra.launcher.dry_run=true"]
    status, _, err = cli("-m", "method=lora", *asked)
    key = bad.split("=")[0]
    assert status == 1
    assert f"hydra.launcher.{bad}" in err
    assert f"e.g. hydra.launcher.{key}=" in err
    assert "Traceback" not in err
    assert not (tmp_path / "outputs" / "stages").exists()


FLAG = "hydra.launcher.sbatch"


@pytest.mark.parametrize(
    "given",
    [
        [FLAG + "={reservation: mine}"],
        ["+" + FLAG + "={reservation: mine}"],
        ["++" + FLAG + "={reservation: mine, exclusive: true}"],
        [FLAG + ".reservation=mine"],
        ["+" + FLAG + ".reservation=mine"],
        ["++" + FLAG + ".reservation=mine"],
        [FLAG + "={exclusive: true}", FLAG + ".reservation=mine"],
        [FLAG + "={reservation: other}", FLAG + "={reservation: mine}"],
        [FLAG + "={reservation: mine}", "+experiment=rank_sweep"],
        [FLAG + ".reservation=mine", "+experiment=rank_sweep", "rank=2,4"],
        [FLAG + "={reservation: '${sweep}'}", "sweep=mine"],
        [FLAG + "={reservation: '${oc.env:NAMED}'}"],
    ],
    ids=" ".join,
)
def test_any_flag_of_sbatch_can_be_given(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, given: list[str]
) -> None:
    monkeypatch.setenv("NAMED", "mine")
    asked = ["-m", "hydra/launcher=slurm", "hydra.launcher.dry_run=true"]
    status, out, err = cli(*asked, "hydra.launcher.dry_run_gpu=none", *given)
    assert status == 0, err
    assert "reservation=mine" in out
    assert "other" not in out


@pytest.mark.parametrize("wrapped", [dict, OmegaConf.create], ids=["plain", "omegaconf"])
@pytest.mark.parametrize("many", [list, tuple])
def test_launchers_take_the_containers_of_any_hydra(
    wrapped: Callable[[Any], Any], many: Callable[[Any], Any]
) -> None:
    asked = wrapped({"sbatch": {"reservation": "mine"}, "setup": many(["module load cuda"])})
    made = SlurmLauncher(**asked).settings
    assert made == SlurmSettings(sbatch={"reservation": "mine"}, setup=["module load cuda"])
    assert not any(OmegaConf.is_config(value) for value in vars(made).values())
    assert read_launcher(json.loads(json.dumps(launcher_note(made)))) == made
    here = LocalLauncher(**wrapped({"gpus": many([0, 1]), "workers": 2})).settings
    assert here == LocalSettings(gpus=[0, 1], workers=2)


@pytest.mark.parametrize("settings", [LocalSettings, SlurmSettings])
def test_the_yaml_files_give_the_declared_defaults(settings: type[LauncherSettings]) -> None:
    path = config_dir() / "hydra" / "launcher" / f"{settings.kind}.yaml"
    values = yaml.safe_load(path.read_text())
    del values["defaults"]
    assert settings(**values) == settings()
    assert list(values) == [one.name for one in dataclasses.fields(settings)]


@pytest.mark.parametrize(
    "settings",
    [
        LocalSettings(workers=2, gpus=[0, 1]),
        SlurmSettings(setup=["module load cuda"], sbatch={"hold": True}, wait=False),
    ],
)
def test_a_sweeps_launcher_is_read_back_for_a_retry(settings: LauncherSettings) -> None:
    assert read_launcher(json.loads(json.dumps(launcher_note(settings)))) == settings


def test_flags_of_sbatch() -> None:
    assert stage_flags(SlurmSettings()) == {
        "gres": "gpu:1", "time": "4:00:00", "nodes": 1, "ntasks-per-node": 1, "requeue": True,
    }  # fmt: skip
    asked = SlurmSettings(
        partition="a,b",
        gres="none",
        mem="8G",
        cpus_per_gpu=4,
        gpus_per_stage=2,
        sbatch={"nodes": 3},
    )
    waiting = JobNote("s", 0.0, after="7")
    assert stage_flags(asked, waiting) == {
        "partition": "a,b", "mem": "8G", "cpus-per-task": 4, "time": "4:00:00", "nodes": 3,
        "ntasks-per-node": 2, "requeue": True, "dependency": "afterok:7",
        "kill-on-invalid-dep": "yes",
    }  # fmt: skip
    assert report_flags(asked, ["5_1", "5_0", "6"]) == {
        "partition": "a,b", "time": "30", "nodes": 1, "ntasks": 1, "cpus-per-task": 1,
        "dependency": "afterany:5:6",
    }  # fmt: skip
    in_a_short_partition = dataclasses.replace(asked, time="5", signal_seconds=60)
    assert report_flags(in_a_short_partition, [])["time"] == "5"


def test_time_limits_in_slurms_notation() -> None:
    minute, hour = 60, 3600
    assert limit_seconds("90") == 90 * minute
    assert limit_seconds("1:30") == 90
    assert limit_seconds("4:00:00") == 4 * hour
    assert limit_seconds("2-12") == 60 * hour
    assert limit_seconds("1-0:30") == 24 * hour + 30 * minute
    assert limit_seconds("UNLIMITED") == float("inf")
    with pytest.raises(UserError, match=r"hydra\.launcher\.time=soon is not a time"):
        limit_seconds("soon")


def test_stages_of_another_version_are_pointed_out(cli: Cli, tmp_path: Path) -> None:
    asked = ["-m", "method=lora", "hydra.launcher.dry_run=true"]
    assert "another version" not in cli(*asked)[1]
    for number in range(2):
        folder = Store(tmp_path / "outputs").folder(f"{number:016}")
        folder.mkdir(parents=True)
        (folder / "stage.json").write_text('{"fingerprint": "0", "version": 1}')
    _, out, _ = cli(*asked)
    assert "2 stages in " in out
    assert "were written by another version of heft_pipeline and are not used" in out
