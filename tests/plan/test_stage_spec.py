"""Fingerprints: everything that can change a result changes them, and nothing else."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from heft_pipeline.plan.graph import Plan, Run
from heft_pipeline.plan.stage_spec import StageSpec, from_json, made_of, to_json

ComposeRun = Callable[..., Run]

#: Fields that say where things are, what they are called, or how fast they go.
CANNOT_CHANGE_A_RESULT = {
    "model.id",
    "model.revision",
    "model.name",
    "model.trust_remote_code",
    "data.id",
    "data.path",
    "data.location",
    "data.revision",
    "data.name",
    "data.allow_overlap",
    "data.cluster_column",
    "lora.init_from",
    "reft.init_from",
    "training.log_every_steps",
    "training.checkpoint_every_seconds",
    "evaluation.batch_size",
    "device",
}


def changed(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, dict):
        return {**value, "x": " x"}
    return "x"


def fields_changed(part: Any) -> Iterator[tuple[str, Any]]:
    """A dataclass with each field changed in turn, and the field's name."""
    for field in dataclasses.fields(part):
        new: dict[str, Any] = {field.name: changed(getattr(part, field.name))}
        yield field.name, dataclasses.replace(part, **new)


def variants(stage: StageSpec) -> Iterator[tuple[str, StageSpec]]:
    """The stage with each field changed in turn, and the field's path."""
    for name in ("model", "data", "training", "evaluation"):
        for field, part in fields_changed(getattr(stage, name)):
            yield f"{name}.{field}", dataclasses.replace(stage, **{name: part})
    for number, adapter in enumerate(stage.adapters):
        for field, part in fields_changed(adapter):
            adapters = (*stage.adapters[:number], part, *stage.adapters[number + 1 :])
            yield f"{adapter.kind}.{field}", dataclasses.replace(stage, adapters=adapters)
    yield "seed", dataclasses.replace(stage, seed=stage.seed + 1)
    yield "device", dataclasses.replace(stage, device="cuda")


def test_each_field_changes_the_fingerprint_or_is_known_not_to(
    compose_run: ComposeRun, small: list[str]
) -> None:
    stage = compose_run(*small, "method=joint").last
    seen = set()
    for path, variant in variants(stage):
        seen.add(path)
        same = variant.fingerprint == stage.fingerprint
        assert same == (path in CANNOT_CHANGE_A_RESULT), path
    assert seen >= CANNOT_CHANGE_A_RESULT
    assert len(seen) > 45, "every field of every part is covered"


def test_a_childs_fingerprint_holds_its_parents(compose_run: ComposeRun, small: list[str]) -> None:
    run = compose_run(*small, "method=heft")
    parent, child = run.stages
    assert child.parent == parent
    for path, variant in variants(parent):
        moved = dataclasses.replace(child, parent=variant)
        same = moved.fingerprint == child.fingerprint
        assert same == (path in CANNOT_CHANGE_A_RESULT), path
    assert dataclasses.replace(child, parent=None).fingerprint != child.fingerprint


#: Overrides of the command line that change a run's stages, and those that do not.
CHANGING = [
    "epochs=4", "rank=4", "seed=1", "lora.rank=4", "lora.alpha=3", "lora.dropout=0.2",
    "lora.target_modules=[q_proj]", "lora.use_rslora=true", "lora.epochs=7", "lora.batch_size=4",
    "lora.learning_rate=1e-5", "lora.weight_decay=0.1", "lora.warmup_ratio=0.3", "reft.rank=4",
    "reft.intervention=direft", "reft.layers=[1]", "reft.positions=f2+l2",
    "reft.share_weights=false", "reft.dropout=0.2", "reft.add_bias=true", "reft.engine=pyreft",
    "reft.epochs=7", "reft.batch_size=4", "reft.learning_rate=1e-5", "reft.weight_decay=0.1",
    "reft.warmup_ratio=0.3", "training.lr_scheduler=cosine", "training.max_grad_norm=2",
    "training.selection=last", "training.early_stopping_patience=2",
    "training.micro_batch_tokens=99", "evaluation.mode=generate", "model.dtype=bfloat16",
    "model.attn_implementation=eager", "data.prompt='{passage} {question}'",
    "data.choices.true=' maybe'", "data.max_train_rows=9", "data.max_eval_rows=9",
    "data.dev_size=0.3", "data.max_prompt_tokens=30", "data.truncate_column=null",
    "data.train_split=validation", "data.eval_split=train", "data.dev_split=validation",
    "data.answer_column=question", "data.id_column=question",
    "reft.reuse=off", "reft.reuse_budget_gib=1", "reft.merge_parent=true",
    "training.gradient_checkpointing=true", "training.compile=true",
    "model.quantization=nf4", "training.micro_batch_tokens=auto",
]  # fmt: skip
NOT_CHANGING = [
    "output_dir=elsewhere", "sweep=other", "tracking=wandb", "tracking.project=x",
    "data.allow_overlap=true",
    "evaluation.batch_size=3", "training.log_every_steps=3",
    "training.checkpoint_every_seconds=9", "device=cpu", "model.name=x", "data.name=x",
    "hydra/launcher=basic", "report.base_model=false", "report.claims=['lora@3 > base']",
]  # fmt: skip


@pytest.mark.parametrize("override", CHANGING)
def test_an_override_that_can_change_a_result_makes_another_stage(
    compose_run: ComposeRun, small: list[str], override: str
) -> None:
    before = compose_run(*small, "method=heft").last
    assert compose_run(*small, "method=heft", override).last.fingerprint != before.fingerprint


@pytest.mark.parametrize("override", NOT_CHANGING)
def test_an_override_that_cannot_change_a_result_makes_the_same_stage(
    compose_run: ComposeRun, small: list[str], override: str
) -> None:
    before = compose_run(*small, "method=heft").last
    assert compose_run(*small, "method=heft", override).last.fingerprint == before.fingerprint


def test_the_same_files_elsewhere_are_the_same_model_and_data(
    compose_run: ComposeRun, small: list[str], small_model: Path, small_data: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(small_model, tmp_path / "m")
    shutil.copytree(small_data, tmp_path / "d")
    before = compose_run(*small).last
    moved = [f"model.id={tmp_path / 'm'}", f"data.path={tmp_path / 'd'}"]
    assert compose_run(*small, *moved).last.fingerprint == before.fingerprint
    with (tmp_path / "d" / "train.jsonl").open("a") as file:
        file.write('{"passage": "w1", "question": "w1", "answer": true}\n')
    assert compose_run(*small, *moved).last.fingerprint != before.fingerprint


def test_stages_survive_json(compose_run: ComposeRun, small: list[str]) -> None:
    for method in ("lora", "reft", "heft", "joint"):
        stage = compose_run(*small, f"method={method}").last
        assert from_json(json.loads(json.dumps(to_json(stage)))) == stage
        json.dumps(made_of(stage))


def test_equal_stages_of_a_sweep_are_one(compose_run: ComposeRun, small: list[str]) -> None:
    runs = [
        compose_run(*small, f"method={method}", f"epochs={epochs}")
        for method in ("lora", "reft", "heft")
        for epochs in (3, 20)
    ]
    plan = Plan(tuple(runs))
    assert (plan.asked, len(plan.stages)) == (8, 6)
    order = list(plan.stages)
    for key, stage in plan.stages.items():
        if stage.parent:
            assert order.index(stage.parent.fingerprint) < order.index(key)


def test_stages_can_be_listed_in_any_order(compose_run: ComposeRun, small: list[str]) -> None:
    run = compose_run(*small, "method.stages=[reft,lora]")
    assert run.method == "reft+lora"
    assert [s.kind for s in run.stages] == ["reft", "lora"]
    assert compose_run(*small, "method.stages=[]").last.kind == "base"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["method=reft", "reft.layers=[2,0]"], ["method=reft", "reft.layers=[0,2]"]),
        (["method=red", "red.layers=[2,0]"], ["method=red", "red.layers=[0,2]"]),
        (["lora.target_modules=[v_proj,q_proj]"], ["lora.target_modules=[q_proj,v_proj]"]),
        (["lora.alpha=null"], ["lora.alpha=16"]),
        (["lora.alpha=16"], ["lora.alpha=16.0"]),
        (["method.stages=[joint]"], ["method.stages=[lora+reft]"]),
        (["method.stages=[lora+reft]"], ["method.stages=[reft+lora]"]),
    ],
)
def test_two_ways_of_asking_for_the_same_are_one_stage(
    compose_run: ComposeRun, small: list[str], one: list[str], other: list[str]
) -> None:
    assert (
        compose_run(*small, *one).last.fingerprint == compose_run(*small, *other).last.fingerprint
    )
