"""What stages are said to cost, against what they cost."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from heft_pipeline.adapters.adapted import adapted
from heft_pipeline.adapters.reft.interventions import CLASSES
from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Run
from heft_pipeline.stage.cached_inputs import cached_base
from heft_pipeline.stage.forecast import Forecast, forecasts
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.training.flops import FlopCounter

Compose = Callable[..., Run]


def forecast(run: Run) -> list[Forecast]:
    """The forecast of each of a run's stages."""
    found = []
    for stage in run.stages:
        ((_, one),) = forecasts([stage])
        assert isinstance(one, Forecast), one
        found.append(one)
    return found


@pytest.mark.parametrize(
    "method",
    [["method=lora"], ["method=reft"], ["method=reft", "reft=suffix"]],
    ids=["lora", "f7+l7", "l7"],
)
def test_the_demos_operations_are_known_before(
    compose_run: Compose, store: Store, method: list[str]
) -> None:
    run = compose_run(*method, "epochs=1")
    (expected,) = forecast(run)
    result = run_stage(run.last, store).result
    assert expected.train_flop / 1e12 == pytest.approx(result["train_tflop"], rel=1e-9)
    assert ("kept in" in result["reuse"]) == bool(expected.kept_bytes)


@pytest.mark.parametrize(
    "asked",
    [
        ["method=heft"],
        ["method=joint", "lora.target_modules=[q_proj]"],
        ["method.stages=[reft,lora]"],
        ["method.stages=[reft,reft]", "reft.positions=l3"],
        ["method=red", "red.layers=[2]"],
        ["method=reft", "reft.layers=[1,2]", "training.micro_batch_tokens=200"],
        ["method=reft", "reft.positions=l3", "training.micro_batch_tokens=auto", "seed=3"],
        ["method=reft", "reft.positions=l3", "data.choices.true=' yes w1 w2'"],
        ["method=reft", "reft.layers=[1]", "data.choices.true=' yes w1 w2'"],
        ["method=reft", "reft.positions=l3", "reft.reuse_budget_gib=5e-4"],
        ["method=reft", "reft.layers=[1]", "reft.reuse_budget_gib=2e-4"],
        ["method=reft", "reft.positions=l1", "reft.layers=[1]", "data.choices.true=' yes w1'"],
        ["method=reft", "reft.positions=l1", "reft.layers=[1]", "reft.reuse_budget_gib=4e-4"],
        ["method=reft", "reft.positions=l3", "reft.layers=[1,2]", "reft.reuse_budget_gib=5e-5"],
        ["method=lora", "lora.loss=sequence", "training.group_by_length=false"],
        ["method=reft", "reft.loss=sequence", "data.dev_size=0", "training.selection=last"],
        ["method=reft", "reft.reuse=off"],
    ],
    ids=" ".join,
)
def test_operations_are_known_before_for_any_stages(
    compose_run: Compose, store: Store, small: list[str], asked: list[str]
) -> None:
    run = compose_run(*small, *asked, "epochs=2")
    for stage, expected in zip(run.stages, forecast(run), strict=True):
        result = run_stage(stage, store).result
        assert expected.train_flop / 1e12 == pytest.approx(result["train_tflop"], rel=1e-9)


def test_scoring_is_counted_for_dev_and_the_reported_split(
    compose_run: Compose, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = compose_run(*small, "method=lora", "epochs=3", "evaluation.batch_size=1000")
    passes: list[int] = []
    counted = FlopCounter.forward

    def noted(self: FlopCounter, rows: int, *given: int, **more: int) -> float:
        passes.append(rows)
        return counted(self, rows, *given, **more)

    monkeypatch.setattr(FlopCounter, "forward", noted)
    (expected,) = forecast(run)
    assert sum(passes) == 12 + 50  # dev rows and reported rows
    base = dataclasses.replace(run.last, adapters=(), training=None)
    ((_, untouched),) = forecasts([base])
    assert isinstance(untouched, Forecast)
    assert untouched.train_flop == 0
    assert 0 < untouched.score_flop < expected.score_flop


def test_memory_is_that_of_weights_and_adapters(compose_run: Compose, small: list[str]) -> None:
    run = compose_run(*small, "method=heft", "epochs=1")
    lora, reft = forecast(run)
    base = cached_base(run.last.model, torch.device("cpu"))
    weights = sum(parameter.nbytes for parameter in base.model.parameters())
    with adapted(base, []) as model:
        for stage in run.stages:
            model.add(stage.adapters)
        counts = [adapter.count() for adapter in model.trained]
    assert lora.memory_bytes > weights + 16 * counts[0]
    more = compose_run(*small, "method=reft", "epochs=1")
    (alone,) = forecast(more)
    assert reft.memory_bytes - alone.memory_bytes == 4 * counts[0], "the frozen parent"
    smaller = ["training.micro_batch_tokens=100", "training.gradient_checkpointing=true"]
    rough = [lora]
    for number in range(len(smaller)):
        rough += forecast(compose_run(*small, "method=lora", "epochs=1", *smaller[: number + 1]))
    assert rough[0].memory_bytes > rough[1].memory_bytes > rough[2].memory_bytes > weights


@pytest.mark.parametrize("intervention", list(CLASSES))
@pytest.mark.parametrize("more", [[], ["reft.share_weights=false", "reft.add_bias=true"]])
def test_refts_parameters_are_known_without_pyreft(
    compose_run: Compose, small: list[str], intervention: str, more: list[str]
) -> None:
    run = compose_run(*small, "method=reft", f"reft.intervention={intervention}", *more)
    base = cached_base(run.last.model, torch.device("cpu"))
    (settings,) = run.last.adapters
    with adapted(base, []) as model:
        model.add([settings])
        expected = settings.parameters_on(base.hidden_size, len(base.layers))
        assert model.count() == expected


def test_stages_that_cost_the_same_share_a_forecast(compose_run: Compose, small: list[str]) -> None:
    seeds = [compose_run(*small, "method=lora", f"seed={seed}").last for seed in (0, 1)]
    faster = compose_run(*small, "method=lora", "lora.learning_rate=0.5").last
    longer = compose_run(*small, "method=lora", "lora.epochs=5").last
    groups = [group for group, _ in forecasts([*seeds, faster, longer])]
    assert groups == [[*seeds, faster], [longer]]


def test_a_model_that_cannot_be_read_is_given_as_the_error(
    compose_run: Compose, small: list[str], tmp_path: Path
) -> None:
    stage = compose_run(*small, "method=lora").last
    model = dataclasses.replace(stage.model, id=str(tmp_path), revision=None, content="other")
    ((_, error),) = forecasts([dataclasses.replace(stage, model=model)])
    assert isinstance(error, UserError)
    assert "has no config.json" in str(error)
