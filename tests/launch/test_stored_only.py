"""hydra.launcher.train=never: a report from the store alone, or an error that names what lacks."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import CliResult

NEVER = ["-m", "hydra.launcher.train=never", "epochs=1"]


@pytest.mark.parametrize("launcher", ["local", "slurm"])
def test_what_is_stored_is_reported_and_what_lacks_is_an_error(
    launcher: str, cli: Callable[..., CliResult], small: list[str], tmp_path: Path
) -> None:
    never = [*NEVER, f"hydra/launcher={launcher}", *small]
    status, _, err = cli(*never, "method=lora", "sweep=s")
    assert status == 1
    assert "lacks 2 of 2 stages: lora@1 r8 s0 (" in err and "hydra.launcher.train=missing" in err
    assert not (tmp_path / "outputs" / "sweeps").exists()
    assert not list((tmp_path / "outputs").glob("stages/*"))
    assert cli(*small, "method=lora", "epochs=1", "sweep=s")[0] == 0
    status, out, err = cli(*never, "method=lora", "sweep=t")
    assert status == 0, err
    assert "report.html" in out
    assert (tmp_path / "outputs/sweeps/t/results.csv").read_text().count("complete") == 1
    status, _, err = cli(*never, "method=lora,reft,heft", "sweep=u")
    assert status == 1 and "lacks 2 of 4 stages" in err and "to do" in err
    predictions = (
        next((tmp_path / "outputs").glob("stages/*/adapter")).parent / "predictions.parquet"
    )
    predictions.write_bytes(predictions.read_bytes()[:-1])
    before = predictions.stat().st_mtime_ns
    status, _, err = cli(*never, "method=lora", "sweep=t")
    assert status == 1 and f"{predictions} has" in err
    assert predictions.stat().st_mtime_ns == before
