"""The doctor says what works here, and one broken thing hides no other."""

import json
import subprocess
from pathlib import Path

import pytest

from launch import doctor
from launch.doctor import GOOD, LACKING, WRONG, Finding, examine, main


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_SECONDS", 0.01)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def found(tmp_path: Path) -> dict[str, Finding]:
    return {one.what: one for one in examine(tmp_path / "outputs")}


def test_everything_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["--output-dir", str(tmp_path), "--json"])
    findings = {one["what"]: one for one in json.loads(capsys.readouterr().out)}
    looked_at = {"heft_pipeline", "packages", "CPU", "dtype on cpu", "disk for outputs"}
    looked_at |= {"writing and locking", "SLURM", "Weights & Biases", "the hub"}
    assert looked_at <= set(findings)
    assert "float32" in findings["dtype on cpu"]["said"]
    assert findings["packages"]["state"] == GOOD
    assert status == int(any(one["state"] == WRONG for one in findings.values()))
    assert not list(tmp_path.iterdir())


def test_it_fits_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main(["--output-dir", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 9 and max(map(len, lines)) <= 80


def test_what_is_broken_is_said_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_LITTLE_DISK", 1e18)
    monkeypatch.setattr(doctor, "requires", lambda _: ["torch>=99", "nothing-of-this-name>=1"])
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    sinfo = tmp_path / "sinfo"
    sinfo.write_text("#!/bin/sh\necho 'slurm_load_partitions: Unable to contact' >&2\nexit 1\n")
    sinfo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    findings = found(tmp_path)
    assert findings["packages"].state == WRONG
    assert "nothing-of-this-name is missing" in findings["packages"].said
    assert ">=99" in findings["packages"].said
    assert findings["disk for outputs"].state == WRONG
    assert findings["SLURM"].state == WRONG and "login node" in findings["SLURM"].said
    assert findings["Weights & Biases"].state == WRONG
    assert "WANDB_MODE=nonsense" in findings["Weights & Biases"].said
    assert findings["the hub"].state == LACKING


def test_without_slurm_nothing_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert found(tmp_path)["SLURM"].state == LACKING


def test_it_is_a_command_of_heft() -> None:
    done = subprocess.run(["heft", "doctor", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: heft doctor")
