"""The experiment files: the runs that each asks for, and the defaults that the paper's rely on."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from transformers import TrainingArguments

from heft_pipeline.plan.graph import Plan, Run
from tests.conftest import CliResult
from tests.data.prepared_tasks import write_task

Cli = Callable[..., CliResult]
ComposeRun = Callable[..., Run]

PAPER = ["reft@20", "lora@20", "lora@3 > reft@3", "lora@20 > reft@20"]
SPLIT = ["lora@2 > reft@1", "lora@1 > reft@2"]
CONTROLS = [
    *("lora@3", "lora@6", "reft@3", "reft@6", "lora@3 > reft@3", *SPLIT),
    *("reft@3 > lora@3", "joint@3", "joint@6", "lora@20", "reft@20", "lora@20 > reft@20"),
]
DEMO = [
    *("lora@3", "lora@6", "lora@20", "reft@3", "reft@6", "reft@20"),
    *("lora@3 > reft@3", "lora@20 > reft@20", *SPLIT),
]


def schedules(run: Run) -> str:
    """A run's stages with their epochs, e.g. ``lora@3 > reft@3``."""
    return " > ".join(f"{stage.kind}@{stage.epochs}" for stage in run.stages)


@pytest.fixture
def planned(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """The plan of a sweep that the command line composes and does not execute."""

    def called(*arguments: str) -> Plan:
        plans: list[Plan] = []
        monkeypatch.setattr("launch.run_sweep.show_plan", lambda plan, *_: plans.append(plan))
        status, _, err = cli("-m", *arguments, "hydra.launcher.dry_run=true")
        assert status == 0, err
        (plan,) = plans
        return plan

    return called


@pytest.mark.parametrize("launcher", ["local", "slurm"])
@pytest.mark.parametrize(
    ("experiment", "seeds", "rows", "stages"),
    [
        ("heft_paper", 1, PAPER, 5),  # and LoRA at 3 epochs, HEFT's first half
        ("heft_paper_controls", 5, CONTROLS, 15),  # and LoRA at 1 and 2, ReFT at 3 below LoRA
        ("heft_demo_paper", 3, DEMO, 12),  # and LoRA at 1 and 2
    ],
)
def test_an_experiment_asks_for_its_rows_once_a_seed(
    planned: Callable[..., Plan],
    small_model: Path,
    small_data: Path,
    experiment: str,
    seeds: int,
    rows: list[str],
    stages: int,
    launcher: str,
) -> None:
    local = [f"model.id={small_model}", f"data.path={small_data}"]
    plan = planned(
        f"+experiment={experiment}",
        f"hydra/launcher={launcher}",
        *([] if experiment == "heft_demo_paper" else local),
    )
    for seed in range(seeds):
        assert [schedules(run) for run in plan.runs if run.last.seed == seed] == rows
    assert len(plan.runs) == seeds * len(rows)
    assert len(plan.stages) - len(plan.baselines) == seeds * stages
    assert len({run.name for run in plan.runs}) == len(plan.runs)


@pytest.fixture
def paper(compose_run: ComposeRun, small_model: Path, small_data: Path) -> Run:
    """HEFT at 3 + 3 epochs with the paper's recipe, on a small model."""
    return compose_run(
        "+experiment=heft_paper", f"model.id={small_model}", f"data.path={small_data}"
    )


def test_what_the_paper_leaves_to_transformers_is_its_default(paper: Run, tmp_path: Path) -> None:
    theirs: Any = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    training = paper.last.training
    assert training is not None
    assert training.lr_scheduler == theirs.lr_scheduler_type.value
    assert training.max_grad_norm == theirs.max_grad_norm
    # Later versions of transformers have a sampling strategy instead of group_by_length.
    assert training.group_by_length is getattr(theirs, "group_by_length", False)
    assert getattr(theirs, "train_sampling_strategy", "random") == "random"
    for stage in paper.stages:
        (adapter,) = stage.adapters
        assert adapter.weight_decay == theirs.weight_decay
        assert adapter.warmup_ratio == theirs.warmup_steps == 0
        assert not getattr(theirs, "warmup_ratio", None)  # gone in later versions


def test_what_the_paper_leaves_to_peft_is_its_default(paper: Run) -> None:
    (lora,) = paper.stages[0].adapters
    theirs = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING["llama"]
    assert sorted(lora.target_modules) == sorted(theirs)  # type: ignore[attr-defined]


def test_what_the_paper_leaves_to_pyreft_is_its_default(paper: Run) -> None:
    from pyreft.dataset import make_last_position_supervised_data_module

    (reft,) = paper.last.adapters
    module = inspect.signature(make_last_position_supervised_data_module).parameters
    assert reft.end_token is not module["nonstop"].default


def test_the_commonsense_tasks_are_asked_for_with_three_methods_and_seeds(
    planned: Callable[..., Plan], tmp_path: Path
) -> None:
    tasks = ("boolq", "piqa", "siqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge",
             "openbookqa")  # fmt: skip
    for name in tasks:
        write_task(tmp_path, name)
    plan = planned("+experiment=commonsense", f"data.path={tmp_path}/${{data.name}}")
    assert len(plan.runs) == 3 * 8 * 3
    asked = {(run.method, run.last.data.name, run.last.seed) for run in plan.runs}
    assert asked == {(m, t, s) for m in ("lora", "reft", "heft") for t in tasks for s in (0, 1, 2)}
    assert plan.unique == 2 * 8 * 3 + 8 * 3, "HEFT's first stage is LoRA's"
