"""What runs are called, and that no run takes another's place."""

import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

import hydra_plugins
from heft_pipeline.plan.graph import Plan, Run
from heft_pipeline.plan.run_names import MOST_CHARACTERS, added, named
from tests.conftest import CliResult

Cli = Callable[..., CliResult]
ComposeRun = Callable[..., Run]


@pytest.fixture
def made(compose_run: ComposeRun, small: list[str]) -> ComposeRun:
    """A run by its short name, from overrides."""
    from dataclasses import replace

    from hydra import compose, initialize_config_dir

    from heft_pipeline.settings.checks import typed
    from heft_pipeline.settings.schema import config_dir, run_name

    def make(*overrides: str) -> Run:
        run = compose_run(*small, *overrides)
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            config = typed(compose("config", ["sweep=s", *small, *overrides]))
        return replace(run, name=run_name(config))

    return make


def names(*runs: Run, known: Plan | None = None) -> list[str]:
    before = {"sweep": "s", **known.to_json()} if known else {}
    return [run.name for run in named(Plan(runs), before).runs]


def test_a_name_says_what_differs_only_where_it_does(made: ComposeRun) -> None:
    assert names(made("method=lora"), made("method=heft"), made("method=lora", "seed=1")) == [
        "lora-3-r8-s0", "heft-3-r8-s0", "lora-3-r8-s1",
    ]  # fmt: skip
    assert names(made("method=lora"), made("method=lora", "lora.learning_rate=1e-4")) == [
        "lora-3-r8-s0-lr3e-3", "lora-3-r8-s0-lr1e-4",
    ]  # fmt: skip
    rates = [made("method=heft", f"reft.learning_rate={rate}") for rate in ("1e-5", "2e-5")]
    assert names(*rates) == ["heft-3-r8-s0-lr1e-5", "heft-3-r8-s0-lr2e-5"]
    both = made("method=heft", "reft.learning_rate=1e-5", "lora.dropout=0")
    assert names(rates[1], both) == [
        "heft-3-r8-s0-lora.drop0.05-reft.lr2e-5", "heft-3-r8-s0-lora.drop0-reft.lr1e-5",
    ]  # fmt: skip
    tasks = [made("method=lora", f"data.name={name}") for name in ("one", "two")]
    assert names(*tasks) == ["lora-3-r8-s0-one", "lora-3-r8-s0-two"]


def test_names_are_unique_and_short_whatever_differs(made: ComposeRun) -> None:
    runs = [
        made("method=lora", f"data.prompt='{{passage}} {word} {{question}} Answer:'")
        for word in ("Question:", "w1", "w2")
    ]
    runs.append(made("method=lora", "data.name=" + "n" * 300))
    found = names(*runs)
    assert len(set(found)) == 4
    assert all(len(name) <= MOST_CHARACTERS for name in found)


def test_a_run_keeps_its_name_when_others_come(made: ComposeRun) -> None:
    first, second = made("method=lora"), made("method=lora", "lora.learning_rate=1e-4")
    known = named(Plan((first,)), {})
    assert names(second, known=known) == ["lora-3-r8-s0-lr1e-4"]
    assert names(second, first, known=known) == ["lora-3-r8-s0-lr1e-4", "lora-3-r8-s0"]
    both = Plan((*known.runs, *named(Plan((second,)), known.to_json()).runs))
    third = made("method=lora", "lora.learning_rate=1e-5")
    assert names(third, known=both) == ["lora-3-r8-s0-lr1e-5"]
    assert added(
        {"sweep": "s", **both.to_json()}, named(Plan((third, first)), both.to_json()).runs
    ) == ("sweep s has 2 runs already; 1 is added (lora-3-r8-s0-lr1e-5); 1 is asked for again")


def test_runs_of_earlier_versions_keep_their_numbers(made: ComposeRun) -> None:
    from dataclasses import replace

    old = Plan((replace(made("method=lora"), name="0-lora-e3-r8-s0"),))
    assert names(made("method=lora"), made("method=heft"), known=old) == [
        "0-lora-e3-r8-s0", "heft-3-r8-s0",
    ]  # fmt: skip


def rows(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "results.csv")


def test_a_sweep_that_is_used_again_is_added_to(cli: Cli, small: list[str], tmp_path: Path) -> None:
    asked = ["-m", *small, "sweep=b7", "method=lora", "epochs=1", "report.base_model=false"]
    folder = tmp_path / "outputs" / "sweeps" / "b7"
    assert cli(*asked)[0] == 0
    status, out, err = cli(*asked, "lora.learning_rate=1e-4")
    assert status == 0, err
    assert "sweep b7 has 1 run already; 1 is added (lora-1-r8-s0-lr1e-4)" in out
    assert len(rows(folder)) == 2
    assert sorted(path.name for path in (folder / "runs").iterdir()) == [
        "lora-1-r8-s0", "lora-1-r8-s0-lr1e-4",
    ]  # fmt: skip
    status, out, err = cli(*asked)
    assert status == 0, err
    assert "1 is asked for again" in out
    assert len(rows(folder)) == 2
    single = [one for one in asked if one != "-m"]
    assert cli(*single)[0] == 0
    assert cli(*single, "lora.learning_rate=1e-3")[0] == 0
    assert len(rows(folder)) == 3
    for path in (folder / "runs").iterdir():
        assert (path / ".hydra" / "config.yaml").is_file()
        assert not path.name.startswith(".")
    overrides = (folder / "runs" / "lora-1-r8-s0-lr1e-3" / ".hydra" / "overrides.yaml").read_text()
    assert "lora.learning_rate=1e-3" in overrides


def test_equal_runs_of_a_command_are_one(cli: Cli, small: list[str], tmp_path: Path) -> None:
    asked = ["-m", *small, "sweep=s", "method=lora", "reft.rank=4,8", "epochs=1"]
    assert cli(*asked)[0] == 0
    assert len(rows(tmp_path / "outputs" / "sweeps" / "s")) == 1


def test_two_commands_at_once_without_a_name(small: list[str], tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "heft_pipeline", "-m", *small, "method=lora", "epochs=1",
        f"output_dir={tmp_path}/out",
    ]  # fmt: skip
    both = [
        subprocess.Popen([*command, f"seed={seed}"], stdout=subprocess.PIPE, text=True)
        for seed in range(2)
    ]
    for process in both:
        process.communicate(timeout=240)
        assert process.returncode == 0
    sweeps = list((tmp_path / "out" / "sweeps").iterdir())
    runs = [json.loads((path / "plan.json").read_text())["runs"] for path in sweeps]
    assert sorted(run["seed"] for one in runs for run in one) == [0, 1]


@pytest.mark.parametrize("mode", [[], ["-m"]])
@pytest.mark.parametrize("name", ["../../esc", "..", ".", "a/b", "-x", "a%jb", "'a b'", "n" * 101])
def test_a_name_that_is_no_folders_leaves_nothing(
    cli: Cli, small: list[str], tmp_path: Path, mode: list[str], name: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    status, _, err = cli(*mode, *small, "method=lora", f"sweep={name}")
    assert status == 1
    assert "sweep=" in err
    assert len(err.splitlines()) < 4, err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("mode", [[], ["-m"]])
def test_a_refused_run_leaves_nothing(
    cli: Cli, small: list[str], tmp_path: Path, mode: list[str]
) -> None:
    status, _, err = cli(*mode, *small, "method=lora", "sweep=s", "data.path=/nowhere")
    assert status == 1
    assert "/nowhere" in err
    assert not (tmp_path / "outputs").exists()


def test_a_dry_run_leaves_no_sweep(cli: Cli, small: list[str], tmp_path: Path) -> None:
    asked = ["-m", *small, "method=lora", "hydra.launcher.dry_run=true"]
    assert cli(*asked, "hydra.launcher.dry_run_gpu=none")[0] == 0
    assert not (tmp_path / "outputs" / "sweeps").exists()


class ChoosesByAccuracy(Sweeper):
    """Stands for a sweeper that needs what runs return."""

    __module__ = "hydra_plugins.other"  # Hydra takes plugins from nowhere else

    def __init__(self, **_: Any) -> None: ...

    def setup(self, **given: Any) -> None:
        self.launcher = Plugins.instance().instantiate_launcher(**given)

    def sweep(self, arguments: list[str]) -> Any:
        assert self.launcher is not None
        return self.launcher.launch([arguments], 0)


def test_a_sweeper_that_needs_accuracies_is_not_left_without(
    cli: Cli, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="no Optuna sweeper here")
    asked = [*small, "method=lora", "hydra/launcher=slurm", "hydra.launcher.wait=false"]
    module = types.ModuleType(ChoosesByAccuracy.__module__)
    monkeypatch.setattr(module, "ChoosesByAccuracy", ChoosesByAccuracy, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(hydra_plugins, "other", module, raising=False)
    Plugins.instance().register(ChoosesByAccuracy)
    other = "hydra.sweeper._target_=hydra_plugins.other.ChoosesByAccuracy"
    status, _, err = cli("-m", *asked, "hydra/sweeper=basic", other)
    assert status == 1
    assert "ChoosesByAccuracy chooses its next runs by it; use hydra.launcher.wait=true" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "outputs" / "stages").exists()
    assert not list(tmp_path.rglob("plan.json"))
