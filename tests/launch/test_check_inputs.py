"""Files that have changed since a stage was planned, and disks without room for the results."""

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from heft_pipeline.adapters.lora.adapter import LoraAdapter
from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Plan, Run, untouched_model
from heft_pipeline.stage import preflight
from heft_pipeline.store.stage_folders import Store
from launch.check_inputs import check_inputs, refuse_changed_inputs
from launch.local.settings import LocalSettings
from launch.slurm.settings import SlurmSettings
from tests.conftest import CliResult

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("dev", ["data.dev_split=dev", "data.dev_split=null"])
def test_an_untouched_model_is_not_refused_for_dev_rows_that_it_does_not_read(
    compose_run: Callable[..., Run], small: list[str], small_data: Path, tmp_path: Path, dev: str
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(small_data, folder)
    shutil.copy(folder / "validation.jsonl", folder / "dev.jsonl")
    run = compose_run(*small, f"data.path={folder}", "method=lora", dev)
    store = Store(tmp_path / "out")
    stages = [run.last, untouched_model(run.last)]
    for stage in stages:
        store.begin(stage)
        refuse_changed_inputs(stage, store)
    with (folder / "validation.jsonl").open("a") as file:
        file.write('{"passage": "w1 w2", "question": "w1", "answer": true}\n')
    for stage in stages:
        with pytest.raises(RuntimeError, match="has changed since the job was submitted"):
            refuse_changed_inputs(stage, store)


@pytest.fixture
def with_room(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Make all disks have so many bytes left."""

    def made(free: float) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(int(free), 0, int(free)))

    return made


def test_a_disk_without_room_is_refused_before_anything_is_trained(
    cli: Callable[..., CliResult], small: list[str], tmp_path: Path,
    with_room: Callable[[float], None],
) -> None:  # fmt: skip
    asked = [*small, "-m", "method=lora", "seed=0,1,2", "rank=8", "epochs=1", "sweep=s"]
    with_room(100_000)
    status, _, err = cli(*asked)
    assert status == 1
    (line,) = [line for line in err.splitlines() if "Error" in line]
    assert line.startswith(
        f"Error: output_dir={tmp_path / 'outputs'} lacks room: 4 stages need about "
    )
    assert "and 100 kB are free; free some space there, choose another place with" in line
    assert line.endswith("with output_dir=DIR, or ask for fewer runs")
    assert "Traceback" not in err
    assert not list((tmp_path / "outputs" / "stages").iterdir())
    with_room(1e6)
    status, out, err = cli(*asked, "hydra.launcher.dry_run=true")
    assert status == 0, err
    assert "which may not be enough" in " ".join(out.split())
    status, out, err = cli(*asked)
    assert status == 0, err
    assert "room is scarce" in out
    with_room(0)
    status, _, err = cli(*asked)
    assert status == 0, f"everything is complete, so nothing is needed: {err}"


def test_a_dry_run_says_what_the_disk_needs(
    cli: Callable[..., CliResult], small: list[str], with_room: Callable[[float], None]
) -> None:
    asked = [*small, "-m", "method=lora", "seed=0,1,2", "hydra.launcher.dry_run=true"]
    with_room(1e12)
    _, out, _ = cli(*asked, "hydra.launcher.workers=2")
    said = " ".join(out.split())
    assert "room in output_dir: 4 stages need about " in said
    assert "of checkpoints of 2 stages at once), and 1.0 TB are free" in said
    with_room(10)
    status, out, _ = cli(*asked)
    assert status == 0, "it is shown all the same"
    assert "10 bytes are free, which is refused unless there is more" in " ".join(out.split())


def test_fewer_stages_at_once_are_a_way_out_where_several_are_trained(
    compose_run: Callable[..., Run], small: list[str], store: Store,
    with_room: Callable[[float], None],
) -> None:  # fmt: skip
    runs = [compose_run(*small, "method=lora", f"seed={seed}") for seed in (0, 1)]
    with_room(100)
    for launcher, way_out in (
        (LocalSettings(workers=2), "hydra.launcher.workers=N"),
        (SlurmSettings(), "hydra.launcher.max_parallel=N"),
    ):
        with pytest.raises(UserError, match=f"fewer of them at once with {way_out}"):
            check_inputs(Plan(tuple(runs)), store, Console(quiet=True), launcher)


def test_many_learning_rates_and_seeds_are_checked_against_the_model_once(
    compose_run: Callable[..., Run], small: list[str], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = []
    check = LoraAdapter.check
    monkeypatch.setattr(preflight, "_FIT", {})  # whatever this process has checked before
    monkeypatch.setattr(
        LoraAdapter, "check", lambda *given: (checks.append(1), check(*given))  # type: ignore[func-returns-value]
    )  # fmt: skip
    asked = [*small, "data.dev_size=8", "method=lora"]
    rates = [compose_run(*asked, f"lora.learning_rate={n + 1}e-4") for n in range(6)]
    ranks = [compose_run(*asked, f"rank={rank}") for rank in (2, 3)]
    check_inputs(Plan((*rates, *ranks)), store, Console(quiet=True))
    assert len(checks) == 3
