"""The formulas for floating-point operations against what torch counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from heft_pipeline.models.decoder import decoder_layers
from heft_pipeline.training.flops import FlopCounter
from heft_pipeline.training.layer_operations import layer_operations
from tests.models.tiny_architectures import tiny_model


@pytest.mark.parametrize("length", [64, 128])
@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("llama", 1e-3),
        ("gpt2", 1e-3),
        ("gemma3", 1e-3),
        ("mixtral", 1e-3),
        ("qwen3_moe", 1e-3),
        ("qwen2_moe", 1e-3),
        ("gpt_oss", 1e-3),
        ("deepseek_v3", 1e-3),
        ("opt", 0.03),  # the projections around the layers are left out
        # Torch cannot count triangular solves and scans that are no matrix products.
        ("qwen3_next", 0.06),
        ("mamba", 0.06),
        ("mamba2", 0.04),
        ("falcon_h1", 0.04),
        ("bamba", 0.04),
        ("jamba", 0.04),
        ("nemotron_h", 0.04),
    ],
)
def test_flops_agree_with_torchs_counter(name: str, close: float, length: int) -> None:
    """Experts are computed one by one, because torch does not count their fused kernel."""
    model = tiny_model(name)
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    counter = FlopCounter(model.requires_grad_(False), decoder_layers(model)[1])
    ids = torch.randint(3, 60, (3, length), generator=torch.Generator().manual_seed(0))
    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_(True)
    with FlopCounterMode(display=False) as measured:
        logits = model(inputs_embeds=embeddings, logits_to_keep=2, use_cache=False).logits
        forward = measured.get_total_flops()
        logits.float().sum().backward()
    assert counter.forward(3, length, 2) == pytest.approx(forward, rel=close)
    assert counter.training(3, length, 2, 0) == pytest.approx(measured.get_total_flops(), rel=close)


def test_skipped_and_frozen_layers_are_left_out_of_a_step() -> None:
    model = tiny_model("llama")
    counter = FlopCounter(model, decoder_layers(model)[1])
    whole = counter.training(2, 32, 1, 0)
    head = 2 * 2 * 2.0 * model.config.vocab_size * model.config.hidden_size
    assert counter.training(2, 32, 1, 2, skipped=2) == pytest.approx((whole - head) / 2 + head)
    assert counter.training(2, 32, 1, 0, reused=32) > whole


@pytest.mark.parametrize(
    ("name", "active"),
    [
        # The weights in the layers, in billions, as the models' papers and cards give them.
        ("mixtral", 12.6),  # 12.9 with the embeddings
        ("deepseek_v3", 35.7),  # 37
        ("qwen3_next", 3.2),  # 3
        ("gpt_oss", 4.5),  # 5.1
        ("jamba", 11.6),  # 12
    ],
)
def test_the_active_weights_are_those_that_models_are_known_by(name: str, active: float) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name))
    layers = layer_operations(model, decoder_layers(model)[1])
    assert sum(layer.weights for layer in layers) / 1e9 == pytest.approx(active, abs=0.1)


@pytest.mark.parametrize(
    ("name", "with_attention"),
    [("llama", 4), ("mamba", 0), ("bamba", 1), ("falcon_h1", 4), ("qwen3_next", 1)],
)
def test_only_layers_with_attention_compare_all_pairs_of_tokens(
    name: str, with_attention: int
) -> None:
    model = tiny_model(name)
    layers = layer_operations(model, decoder_layers(model)[1])
    assert sum(layer.attention > 0 for layer in layers) == with_attention
