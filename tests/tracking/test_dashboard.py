"""The workspace as it arrives at a W&B server."""

import json
import subprocess
import sys
from typing import Any

import pytest

from heft_pipeline.dashboard import save
from heft_pipeline.errors import UserError
from tests.tracking.wandb_server import WandbServer


def dashboard(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "heft_pipeline.dashboard", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def panels(spec: dict[str, Any], section: str) -> list[dict[str, Any]]:
    sections = spec["section"]["panelBankConfig"]["sections"]
    (found,) = [s["panels"] for s in sections if s["name"] == section]
    return list(found)


def test_a_view_shows_accuracy_against_each_cost_and_every_curve(server: WandbServer) -> None:
    done = dashboard("--project", "heft", "--group", "s")
    assert done.returncode == 0, done.stderr
    ((name, view),) = server.views.items()
    assert done.stdout.strip() == f"{server.url}/me/heft?nw={name[3:-2]}"
    spec = json.loads(view["spec"])
    costs = panels(spec, "Accuracy and its costs")
    scatters = {p["config"]["xAxis"] for p in costs if "yAxis" in p["config"]}
    assert {"summary:total_epochs", "summary:train_seconds", "summary:train_tflop"} <= scatters
    assert "config:rank.value" in scatters
    assert {p["config"]["yAxis"] for p in costs if "yAxis" in p["config"]} == {"summary:accuracy"}
    for prefix, section in (("lora", "LoRA stages"), ("reft", "ReFT stages")):
        curves = {p["config"]["metrics"][0]: p["config"]["xAxis"] for p in panels(spec, section)}
        names = ("loss", "dev_accuracy", "learning_rate", "grad_norm", "examples_per_second")
        assert {f"{prefix}/{name}" for name in names} <= set(curves)
        assert set(curves.values()) == {f"{prefix}/step"}
    assert [p["viewType"] for p in panels(spec, "Runs")] == ["Run Comparer"]
    (runs,) = spec["section"]["runSets"]
    assert "summary:accuracy" in runs["runFeed"]["columnPinned"]
    assert '"s"' in json.dumps(runs["filters"])
    assert "group" in json.dumps(runs["filters"])


def test_asking_again_updates_the_view_and_another_sweep_has_its_own(server: WandbServer) -> None:
    first = dashboard("--group", "s")
    again = dashboard("--group", "s")
    assert first.stdout == again.stdout, first.stderr + again.stderr
    assert len(server.views) == 1
    assert dashboard("--group", "other").returncode == 0
    assert len(server.views) == 2


def test_a_missing_package_or_account_is_said_with_what_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UserError, match="wandb login"):
        save(None, "heft", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(UserError, match=r"pip install 'heft-pipeline\[dashboard\]'"):
        save(None, "heft", None)


def test_a_server_that_refuses_is_one_message(server: WandbServer) -> None:
    server.refuses = True
    done = dashboard()
    assert done.returncode == 1
    assert done.stderr.startswith("Error: W&B did not accept the dashboard")
    assert "Traceback" not in done.stderr
