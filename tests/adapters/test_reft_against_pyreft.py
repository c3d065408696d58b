"""The hooks against pyreft's own ReftModel: same logits, loss and gradients."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from heft_pipeline.adapters.adapted import AdaptedModel, adapted
from heft_pipeline.adapters.kind import AdapterSettings
from heft_pipeline.adapters.reft.adapter import ReftAdapter
from heft_pipeline.adapters.reft.interventions import CLASSES
from heft_pipeline.adapters.reft.positions import prompt_positions
from heft_pipeline.data.batches import AnsweredPrompt, Batch, collate
from heft_pipeline.data.prompts import Task, load_task
from heft_pipeline.models.base_model import Base, load_base
from heft_pipeline.plan.graph import Run
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.training.loss import answer_loss
from tests.conftest import composed_run

ComposeRun = Callable[..., Run]


@pytest.fixture(scope="module")
def lora_parent(
    tmp_path_factory: pytest.TempPathFactory, small: list[str]
) -> tuple[AdapterSettings, Path]:
    """A trained LoRA adapter's settings and folder."""
    folder = tmp_path_factory.mktemp("parent")
    stage = composed_run(*small, "method=lora", "epochs=1").last
    store = Store(folder)
    run_stage(stage, store)
    return stage.adapters[0], store.adapter(stage)


def measured(
    base: Base,
    parents: list[tuple[AdapterSettings, Path]],
    stage: StageSpec,
    batch: Batch,
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Answer logits, loss, and gradients of a freshly made adapter."""
    with adapted(base, parents) as model:
        torch.manual_seed(7)
        model.add(stage.adapters)
        shake(model)
        logits = model.logits(batch)
        loss = answer_loss(logits, batch)
        loss.backward()
        gradients = {
            name: parameter.grad.clone()
            for name, parameter in model.parameters().items()
            if parameter.grad is not None
        }
    return logits.detach(), loss.detach(), gradients


def shake(model: AdaptedModel) -> None:
    """Move a fresh adapter off its starting point, where some gradients are 0."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters().values():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 2 and parameter.shape[0] > parameter.shape[1]:
                noise = noise.tril(-1)  # an orthogonal parametrisation keeps its diagonal
            parameter.add_(0.05 * noise)


@pytest.mark.parametrize("share_weights", [True, False])
def test_short_prompts_are_edited_as_pyreft_does(
    compose_run: ComposeRun, small: list[str], share_weights: bool
) -> None:
    """pyreft halves a prompt that is shorter than its positions, and pads what is left over."""
    asked = [*small, "method=reft", f"reft.share_weights={share_weights}"]
    hooks = compose_run(*asked).last
    oracle = compose_run(*asked, "reft.engine=pyreft").last
    base = load_base(hooks.model, torch.device("cpu"))
    sequences = [AnsweredPrompt(tuple(range(8, 8 + n)), (3,)) for n in (1, 2, 5, 13, 14, 20)]
    batch = collate(sequences, 0)
    logits, loss, gradients = measured(base, [], hooks, batch)
    expected_logits, expected_loss, expected_gradients = measured(base, [], oracle, batch)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-4, atol=2e-5)


def some_batch(task: Task, padding_side: str) -> Batch:
    examples = task.train[:6]
    assert len({len(e.prompt) for e in examples}) > 1, "padding must be at work"
    sequences = [AnsweredPrompt(e.prompt, e.answer) for e in examples]
    return collate(sequences, 0, padding_side)


@pytest.mark.parametrize("parent", [False, True], ids=["base", "lora-parent"])
@pytest.mark.parametrize("intervention", CLASSES)
def test_hooks_equal_pyreft(
    compose_run: ComposeRun,
    small: list[str],
    lora_parent: tuple[AdapterSettings, Path],
    intervention: str,
    parent: bool,
) -> None:
    asked = [*small, "method=reft", f"reft.intervention={intervention}", "reft.rank=4"]
    hooks = compose_run(*asked).last
    oracle = compose_run(*asked, "reft.engine=pyreft").last
    base = load_base(hooks.model, torch.device("cpu"))
    task = load_task(hooks.data, base.tokenizer, seed=0)
    parents = [lora_parent] if parent else []
    batch = some_batch(task, "left")
    logits, loss, gradients = measured(base, parents, hooks, batch)
    expected_logits, expected_loss, expected_gradients = measured(base, parents, oracle, batch)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-6)
    assert gradients.keys() == expected_gradients.keys()
    assert gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-4, atol=1e-5)
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients.values())


def test_pyrefts_engine_leaves_the_edits_of_a_parent_and_every_other_hook(
    compose_run: ComposeRun, small: list[str], store: Store
) -> None:
    """pyvene would remove all hooks of the model, and with them what the parent stage does."""
    asked = [*small, "method.stages=[reft,reft]", "epochs=1"]
    hooks, oracle = compose_run(*asked), compose_run(*asked, "reft.engine=pyreft")
    run_stage(hooks.stages[0], store)
    parents = [(hooks.stages[0].adapters[0], store.adapter(hooks.stages[0]))]
    base = load_base(hooks.last.model, torch.device("cpu"))
    batch = some_batch(load_task(hooks.last.data, base.tokenizer, seed=0), "left")

    def hook_ids() -> list[list[int]]:
        return [[*m._forward_hooks, *m._forward_pre_hooks] for m in base.model.modules()]

    before = hook_ids()
    logits, loss, _ = measured(base, parents, hooks.last, batch)
    for _ in range(2):
        found, found_loss, _ = measured(base, parents, oracle.last, batch)
        torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found_loss, loss, rtol=1e-6, atol=1e-6)
    without_parent, _, _ = measured(base, [], hooks.last, batch)
    assert (without_parent - logits).abs().max() > 1e-3
    assert hook_ids() == before


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("share_weights", [True, False])
@pytest.mark.parametrize(
    ("intervention", "positions"),
    [*((kind, "f3+l4") for kind in CLASSES), ("loreft", "f5"), ("loreft", "l5")],
)
def test_hooks_equal_pyreft_with_either_padding(
    compose_run: ComposeRun,
    small: list[str],
    intervention: str,
    positions: str,
    share_weights: bool,
    padding_side: str,
) -> None:
    asked = [*small, "method=reft", f"reft.positions={positions}", "reft.layers=[0,2]"]
    asked += [f"reft.share_weights={share_weights}", f"reft.intervention={intervention}"]
    hooks = compose_run(*asked).last
    oracle = compose_run(*asked, "reft.engine=pyreft").last
    base = load_base(hooks.model, torch.device("cpu"))
    task = load_task(hooks.data, base.tokenizer, seed=0)
    batch = some_batch(task, padding_side)
    rows = torch.arange(len(batch.input_ids))
    last = batch.prompt_start + batch.prompt_length - 1

    def next_token(stage: StageSpec) -> torch.Tensor:
        with adapted(base, []) as model:
            torch.manual_seed(7)
            model.add(stage.adapters)
            shake(model)
            inputs = {
                "input_ids": batch.input_ids,
                "attention_mask": batch.attention_mask,
                "position_ids": batch.position_ids,
            }
            (adapter,) = model.trained
            assert isinstance(adapter, ReftAdapter)
            if adapter._engine is not None:
                reft_model, units = adapter._engine._model, adapter.interventions.units
                columns = [prompt_positions(batch, positions, unit.end).tolist() for unit in units]
                _, output = reft_model(inputs, unit_locations={"sources->base": (None, columns)})
            else:
                with model.editing(batch):
                    output = base.model(**inputs)
            logits: torch.Tensor = output.logits[rows, last].detach()
            return logits

    torch.testing.assert_close(next_token(hooks), next_token(oracle), rtol=1e-5, atol=1e-5)


def test_padding_changes_no_logits(compose_run: ComposeRun, small: list[str]) -> None:
    stage = compose_run(*small, "method=reft").last
    base = load_base(stage.model, torch.device("cpu"))
    task = load_task(stage.data, base.tokenizer, seed=0)
    with adapted(base, []) as model, torch.no_grad():
        torch.manual_seed(7)
        model.add(stage.adapters)
        shake(model)
        together = model.logits(some_batch(task, "left"))
        for row, example in enumerate(task.train[:6]):
            sequence = AnsweredPrompt(example.prompt, example.answer)
            alone = model.logits(collate([sequence], 0))
            torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-4)


def test_a_model_is_itself_again_after_a_stage(
    compose_run: ComposeRun, small: list[str], lora_parent: tuple[AdapterSettings, Path]
) -> None:
    stage = compose_run(*small, "method=joint").last
    base = load_base(stage.model, torch.device("cpu"))
    task = load_task(stage.data, base.tokenizer, seed=0)
    batch = some_batch(task, "left")

    def plain() -> torch.Tensor:
        with adapted(base, []) as model, torch.no_grad():
            return model.logits(batch)

    before, names = plain(), set(base.model.state_dict())
    with adapted(base, [lora_parent]) as model, torch.no_grad():
        model.add(stage.adapters)
        shake(model)
        assert not torch.equal(model.logits(batch), before)
    assert torch.equal(plain(), before)
    assert set(base.model.state_dict()) == names


def test_weight_decay_leaves_rotations_orthonormal(
    compose_run: ComposeRun, small: list[str], store: Store
) -> None:
    """Decay on torch's orthogonal parametrisation would round R to 0."""
    from safetensors.torch import load_file

    stage = compose_run(*small, "method=reft", "epochs=2", "reft.weight_decay=0.1").last
    run_stage(stage, store)
    weights = load_file(store.adapter(stage) / "reft.safetensors")
    for name, rotation in weights.items():
        if name.endswith("rotate_layer"):
            product = rotation.T @ rotation
            torch.testing.assert_close(product, torch.eye(len(product)), rtol=1e-4, atol=1e-4)
