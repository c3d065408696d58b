"""What tests of tracking share: a clean W&B environment, and a server to send to."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from heft_pipeline.__main__ import main
from tests.tracking.wandb_server import KEY, WandbServer, serving


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees this machine's W&B account, and what W&B caches goes to a folder of the test."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb-cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb-data"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A W&B server, with an account at it."""
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield server


Track = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def track() -> Track:
    """Run ``python -m heft_pipeline.tracking``; W&B's settings are those of the environment now."""

    def called(*arguments: object) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "heft_pipeline.tracking", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return called


@pytest.fixture(scope="session")
def trained_once(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with the sweep ``s`` of a LoRA and a HEFT run, not tracked."""
    folder = tmp_path_factory.mktemp("trained")
    asked = [*small, "method=lora,heft", "epochs=2", "training.log_every_steps=1", "sweep=s"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["heft_pipeline", "-m", *asked, f"output_dir={folder}"])
        main()
    return folder


@pytest.fixture(scope="session")
def sent_once(trained_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep's folder after it was written for ``wandb sync``; for reading only."""
    outputs = tmp_path_factory.mktemp("sent") / "outputs"
    shutil.copytree(trained_once, outputs)
    sweep = outputs / "sweeps" / "s"
    set_tracking(sweep, HEFT, log_predictions=True, log_adapter=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_secret")
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_DATA_DIR", str(outputs / "wandb-data"))
        command = [sys.executable, "-m", "heft_pipeline.tracking", str(sweep)]
        subprocess.run(command, check=True, capture_output=True)
    return sweep


@pytest.fixture
def sweep(trained_once: Path, tmp_path: Path) -> Path:
    """The folder of a trained sweep of two runs, the test's own copy."""
    shutil.copytree(trained_once, tmp_path / "outputs")
    return tmp_path / "outputs" / "sweeps" / "s"


LORA, HEFT = "lora-2-r8-s0", "heft-2-r8-s0"


def stage_folders(sweep: Path, run: str) -> list[Path]:
    """The folders of a run's stages."""
    plan = json.loads((sweep / "plan.json").read_text())
    (keys,) = [entry["stages"] for entry in plan["runs"] if entry["name"] == run]
    return [sweep.parent.parent / "stages" / key for key in keys]


def set_tracking(sweep: Path, run: str, **values: object) -> None:
    """Change what a run's config says of tracking."""
    path = sweep / "runs" / run / ".hydra" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["tracking"] = {**config["tracking"], "name": "wandb", **values}
    path.write_text(yaml.safe_dump(config))
