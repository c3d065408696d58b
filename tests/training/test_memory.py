"""Running out of memory: a step and an evaluation are tried again in smaller parts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from heft_pipeline.adapters.adapted import AdaptedModel
from heft_pipeline.devices.memory import is_out_of_memory
from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Run
from heft_pipeline.stage.cached_inputs import cached_base, cached_probe
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.training.metrics import read_metrics

ComposeRun = Callable[..., Run]


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device with room for 200 padded tokens a pass; collects each pass that fits."""
    passes: list[int] = []
    real = AdaptedModel.logits

    def logits(model: AdaptedModel, batch: Any) -> torch.Tensor:
        if batch.input_ids.numel() > 200:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        passes.append(batch.input_ids.numel())
        return real(model, batch)

    monkeypatch.setattr(AdaptedModel, "logits", logits)
    return passes


def losses(store: Store, run: Run) -> list[float]:
    lines = read_metrics(store.folder(run.last.fingerprint) / "metrics.jsonl")
    return [line["loss"] for line in lines if line["event"] == "step"]


@pytest.mark.parametrize("asked", ["auto", "700"])
def test_a_step_that_does_not_fit_is_done_in_parts_with_the_same_losses(
    compose_run: ComposeRun, small: list[str], small_memory: list[int], tmp_path: Any, asked: str
) -> None:
    made_of = ["method=lora", "epochs=1", "training.log_every_steps=1"]
    run = compose_run(*small, *made_of, f"training.micro_batch_tokens={asked}")
    store = Store(tmp_path / "short")
    result = run_stage(run.last, store).result
    assert 100 <= result["micro_batch_tokens"] <= 200
    assert max(small_memory) <= 200
    # Halved, not one by one; dropout's masks are those of parts of this size.
    within = compose_run(
        *small, *made_of, f"training.micro_batch_tokens={result['micro_batch_tokens']}"
    )
    expected = Store(tmp_path / "enough")
    run_stage(within.last, expected)
    after_the_first = losses(store, run)[1:]
    assert after_the_first == pytest.approx(losses(expected, within)[1:], abs=0.05)
    with_no_dropout = [
        compose_run(*small, *made_of, "lora.dropout=0", f"training.micro_batch_tokens={tokens}")
        for tokens in (asked, 100)
    ]
    for each in with_no_dropout:
        run_stage(each.last, store)
    one, other = (losses(store, each) for each in with_no_dropout)
    assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("method", ["method=lora", "method=reft", "method=joint"])
def test_gradient_checkpointing_changes_no_loss_and_keeps_less(
    compose_run: ComposeRun, small: list[str], store: Store, method: str
) -> None:
    made_of = [*small, method, "epochs=1", "training.log_every_steps=1"]
    plain = compose_run(*made_of)
    again = compose_run(*made_of, "training.gradient_checkpointing=true")
    calls = {}
    for run in (plain, again):
        base = cached_base(run.last.model, torch.device("cpu"))
        cached_probe(run.last, torch.device("cpu"))  # tried once in a process, and not counted
        seen: list[None] = []
        within: Any = base.layers[1].input_layernorm
        handle = within.register_forward_hook(lambda *_, seen=seen: seen.append(None))
        run_stage(run.last, store)
        handle.remove()
        calls[run.last.fingerprint] = len(seen)
    assert losses(store, again) == pytest.approx(losses(store, plain), abs=1e-6)
    steps = len(losses(store, plain))
    first, second = calls.values()
    assert second - first == steps, "each step computes the layer once more"


def test_an_evaluation_that_does_not_fit_is_halved(
    compose_run: ComposeRun, small: list[str], small_memory: list[int], tmp_path: Any
) -> None:
    base = compose_run(*small, "method.stages=[]").last
    halved = run_stage(base, Store(tmp_path / "short")).result
    assert max(small_memory) <= 200
    few = compose_run(*small, "method.stages=[]", "evaluation.batch_size=2").last
    assert run_stage(few, Store(tmp_path / "few")).result["eval_loss"] == pytest.approx(
        halved["eval_loss"], abs=1e-5
    )


def test_one_sequence_that_does_not_fit_is_said_to_be_too_long(
    compose_run: ComposeRun, small: list[str], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def logits(_model: AdaptedModel, _batch: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(AdaptedModel, "logits", logits)
    with pytest.raises(UserError, match=r"one sequence of \d+ tokens does not fit"):
        run_stage(compose_run(*small, "method=lora").last, store)


def test_other_errors_are_not_taken_for_it() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"))
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))
