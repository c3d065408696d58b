"""Shortcuts of the forward pass against the passes that they stand for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft.tuners.lora.layer import Linear
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from heft_pipeline.adapters.adapted import adapted
from heft_pipeline.adapters.lora.lean_forward import LeanLinear
from heft_pipeline.models.attention import attention_implementation, grouped_attention
from heft_pipeline.models.base_model import load_base
from heft_pipeline.plan.graph import Run
from heft_pipeline.stage.cached_inputs import cached_base, cached_task
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.training.loss import answer_loss
from heft_pipeline.training.metrics import read_metrics
from tests.adapters.test_reft_against_pyreft import some_batch

ComposeRun = Callable[..., Run]
CPU = torch.device("cpu")


@pytest.mark.parametrize("key_heads", [1, 2, 6])
@pytest.mark.parametrize(("queries", "keys"), [(9, 9), (4, 9)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_grouped_attention_is_attention(
    key_heads: int, queries: int, keys: int, dtype: torch.dtype, close: float
) -> None:
    torch.manual_seed(0)
    shapes = [(2, 6, queries, 8), (2, key_heads, keys, 8), (2, key_heads, keys, 8)]
    own = [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]
    other = [tensor.detach().float().requires_grad_() for tensor in own]
    seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries).repeat(2, 1, 1, 1)
    seen[0, :, :, 0] = False
    seen[0, :, 0, 0] = True
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(dtype).min)
    module = torch.nn.Module()
    module.num_key_value_groups = 6 // key_heads  # type: ignore[assignment]
    module.is_causal = True  # type: ignore[assignment]
    query, key, value = own
    found, _ = grouped_attention(module, query, key, value, mask.to(dtype), scaling=0.3)
    expected, _ = sdpa_attention_forward(module, *other, mask, scaling=0.3)
    torch.testing.assert_close(found.float(), expected, atol=close, rtol=close)
    direction = torch.randn(found.shape)
    (found.float() * direction).sum().backward()
    (expected * direction).sum().backward()
    for one, two in zip(own, other, strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad.float(), two.grad, atol=2 * close, rtol=2 * close)


def test_grouped_attention_is_chosen_where_it_is_faster() -> None:
    gpu = torch.device("cuda")
    assert attention_implementation("auto", "llama", CPU, torch.bfloat16) == "grouped"
    assert attention_implementation("auto", "llama", CPU, torch.float32) is None
    assert attention_implementation("auto", "llama", gpu, torch.bfloat16) is None
    assert attention_implementation("auto", "gpt_oss", CPU, torch.bfloat16) is None
    assert attention_implementation("eager", "llama", CPU, torch.bfloat16) == "eager"


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text", "gpt_neox"])
def test_grouped_attention_is_that_of_each_architecture_it_is_chosen_for(kind: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = AutoConfig.for_model(kind, **sizes, **heads, initializer_range=0.3)
    torch.manual_seed(0)
    assert attention_implementation("grouped", kind, CPU, torch.float32) == "grouped"
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    ids = torch.randint(3, 40, (2, 7))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits[:, -3:]
        model.set_attn_implementation("grouped")
        found = model(ids, attention_mask=mask).logits[:, -3:]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_models_logits_do_not_depend_on_the_attention(
    compose_run: ComposeRun, small: list[str], dtype: str
) -> None:
    logits = []
    for name in ("grouped", "sdpa"):
        asked = [f"model.dtype={dtype}", f"model.attn_implementation={name}"]
        stage = compose_run(*small, *asked).last
        base = load_base(stage.model, CPU)
        assert base.model.config._attn_implementation == name
        with adapted(base, []) as model, torch.no_grad():
            batch = some_batch(cached_task(stage), "left")
            logits.append(model.logits(batch).float())
    close = 1e-4 if dtype == "float32" else 0.1
    torch.testing.assert_close(logits[0], logits[1], atol=close, rtol=close)


@pytest.mark.parametrize(("dtype", "close"), [("float32", 1e-6), ("bfloat16", 2e-2)])
def test_the_lean_lora_forward_is_pefts(
    compose_run: ComposeRun, small: list[str], dtype: str, close: float
) -> None:
    stage = compose_run(*small, "method=lora", f"model.dtype={dtype}", "lora.dropout=0").last
    base = load_base(stage.model, CPU)
    batch = some_batch(cached_task(stage), "left")
    found = []
    for own in (True, False):
        with adapted(base, []) as model:
            torch.manual_seed(0)
            model.add(stage.adapters)
            for name, parameter in model.parameters().items():
                if "lora_B" in name:  # at 0 nothing would be seen
                    torch.nn.init.normal_(parameter, std=0.1)
                assert parameter.dtype == torch.float32
            layers = [m for m in base.model.modules() if isinstance(m, Linear)]
            assert {type(layer) for layer in layers} == {LeanLinear}
            if not own:
                for layer in layers:
                    layer.__class__ = Linear
            loss = answer_loss(model.logits(batch), batch)
            loss.backward()
            grads = [p.grad for p in model.parameters().values()]
        found.append((loss.detach(), torch.cat([g.flatten() for g in grads if g is not None])))
    (own_loss, grad), (expected_loss, expected_grad) = found
    torch.testing.assert_close(own_loss, expected_loss, rtol=close, atol=close)
    assert (grad - expected_grad).norm() < 3 * close * expected_grad.norm()


@pytest.mark.parametrize("method", ["method=lora", "method=reft"])
def test_compiled_layers_give_the_same_losses(
    compose_run: ComposeRun, small: list[str], store: Store, method: str
) -> None:
    made_of = [*small, method, "epochs=1", "lora.dropout=0", "training.log_every_steps=1"]
    losses = []
    for compiled in ("true", "false"):
        stage = compose_run(*made_of, f"training.compile={compiled}").last
        run_stage(stage, store)
        lines = read_metrics(store.folder(stage.fingerprint) / "metrics.jsonl")
        losses.append([line["loss"] for line in lines if line["event"] == "step"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_compiled_layers_stay_compiled_until_the_evaluation_is_done(
    compose_run: ComposeRun, small: list[str], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []

    def counted(forward: Any, **_: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(torch.is_grad_enabled())
            return forward(*args, **kwargs)

        return call

    monkeypatch.setattr(torch, "compile", counted)
    stage = compose_run(*small, "method=lora", "epochs=1", "training.compile=true",
                        "training.selection=last").last  # fmt: skip
    run_stage(stage, store)
    last_training = max(i for i, grad in enumerate(calls) if grad)
    num_layers = 3
    assert len(calls) - 1 - last_training > num_layers, "the evaluation runs several batches"


def test_the_head_gets_one_product_for_sliced_inputs(
    compose_run: ComposeRun, small: list[str]
) -> None:
    base = load_base(compose_run(*small).last.model, CPU)
    seen = []
    head = base.model.get_output_embeddings()
    head.register_forward_pre_hook(lambda _, given: seen.append(given[0].is_contiguous()))
    ids = torch.full((3, 5), 9)
    base.model(ids, logits_to_keep=2)
    assert seen == [True]


@pytest.mark.parametrize(("dtype", "close"), [("float32", 1e-4), ("bfloat16", 0.15)])
def test_a_merged_parent_gives_the_losses_of_one_beside_the_weights(
    compose_run: ComposeRun, small: list[str], store: Store, dtype: str, close: float
) -> None:
    made_of = [*small, "method=heft", "epochs=1", f"model.dtype={dtype}"]
    made_of += ["training.log_every_steps=1", "lora.learning_rate=1e-2"]
    beside, merged = compose_run(*made_of), compose_run(*made_of, "reft.merge_parent=true")
    base = cached_base(beside.last.model, CPU)
    weights = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    losses = []
    for run in (beside, merged):
        for stage in run.stages:
            run_stage(stage, store)
        lines = read_metrics(store.folder(run.last.fingerprint) / "metrics.jsonl")
        losses.append([line["loss"] for line in lines if line["event"] == "step"])
    assert losses[0] == pytest.approx(losses[1], abs=close)
    error = (store.result(merged.last.fingerprint) or {})["merge_error"]
    assert 0 < error < close
    assert (store.result(beside.last.fingerprint) or {})["merge_error"] is None
    after = base.model.state_dict()
    assert weights.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in weights.items())


def test_parents_are_not_merged_below_a_weight_space_adapter_in_training(
    compose_run: ComposeRun, small: list[str], store: Store
) -> None:
    """Merging takes the place of the modules' forward pass, which the new adapter is part of."""
    from safetensors.torch import load_file

    asked = ["method.stages=[lora,lora+reft]", "epochs=1", "reft.merge_parent=true"]
    run = compose_run(*small, *asked)
    for stage in run.stages:
        run_stage(stage, store)
    assert (store.result(run.last.fingerprint) or {})["merge_error"] is None
    lora = load_file(store.adapter(run.last) / "lora" / "adapter_model.safetensors")
    assert all(tensor.any() for name, tensor in lora.items() if "lora_B" in name)
