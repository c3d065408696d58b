"""A tiny random model of any causal-language-model architecture that transformers has."""

import inspect
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from benchmarks.architectures.exceptions import AS_DECODER, ENCODERS, LAYERS, OVERRIDES, UNSET

#: Words of the tokenizer, and of the model, which has some that only images and the like use.
TOKENS, VOCABULARY = 68, 80
#: The longest input of a tiny model.
CONTEXT = 128
_WIDTH, _HEADS, _KEY_HEADS, _HEAD = 32, 4, 2, 8
#: The most layers that are taken to have one of each kind.
_MOST_LAYERS = 6

#: The tiny value of each field of a configuration, by its name in any architecture.
SIZES: dict[str, int] = {
    name: size
    for size, names in (
        (
            VOCABULARY,
            "vocab_size decoder_vocab_size vocab_size_per_layer_input unpadded_vocab_size",
        ),
        (
            _WIDTH,
            "hidden_size d_model n_embd emb_dim embedding_size embed_dim embedding_dim "
            "word_embed_proj_dim input_embedding_size output_embedding_size lru_width "
            "adapter_out_dim attention_hidden_size out_hidden_size hidden_size_global "
            "pronunciation_embed_dim shape_embed_dim projector_input_dim projector_output_dim "
            "output_channels adapter_in_dim rel_extent",
        ),
        (
            2 * _WIDTH,
            "intermediate_size decoder_ffn_dim encoder_ffn_dim ffn_dim n_inner dff dim_ff d_ff "
            "d_inner ffn_hidden_size moe_intermediate_size intermediate_size_mlp mlp_dim "
            "shared_expert_intermediate_size shared_experts_intermediate_size "
            "shared_intermediate_size dense_intermediate_size expert_ffn_hidden_size "
            "moe_shared_expert_intermediate_size feed_forward_size hidden_dim prompt_mid_dim "
            "mamba_d_ssm original_max_position_embeddings",
        ),
        (
            _HEADS,
            "num_attention_heads n_head n_heads num_heads decoder_attention_heads "
            "encoder_attention_heads attention_heads swa_num_attention_heads "
            "num_encoder_attention_heads num_decoder_attention_heads conf_num_attention_heads "
            "linear_num_value_heads linear_num_heads num_experts n_routed_experts "
            "num_local_experts moe_num_experts patch_size num_query_groups",
        ),
        (
            _KEY_HEADS,
            "num_key_value_heads num_kv_heads kv_n_heads swa_num_key_value_heads "
            "linear_num_key_heads num_experts_per_tok num_experts_per_token moe_topk moe_k "
            "moe_top_k top_k_experts zero_expert_num num_hidden_layers n_layer n_layers "
            "num_layers decoder_layers encoder_layers depth num_decoder_layers "
            "num_encoder_layers num_blocks conf_num_hidden_layers num_global_layers "
            "num_global_key_value_heads",
        ),
        (
            1,
            "n_shared_experts num_shared_experts moe_num_shared_experts n_group topk_group "
            "num_expert_group o_groups mamba_n_groups n_groups mamba_ngroups num_residual_layers "
            "first_k_dense_replace",
        ),
        (
            _HEAD,
            "head_dim d_head d_kv dim_head kv_channels swa_head_dim qk_rope_head_dim "
            "qk_nope_head_dim v_head_dim index_head_dim linear_key_head_dim linear_value_head_dim "
            "linear_head_dim attention_head_size mamba_d_head mamba_n_heads mamba_d_state "
            "state_size ssm_state_size mamba_num_heads mamba_head_dim mamba_headdim n_mamba_heads "
            "mamba_chunk_size chunk_size sliding_window window_size attention_window_size "
            "sliding_window_size local_attention attention_chunk_size keep_window_size "
            "time_step_rank mamba_dt_rank laurel_rank hidden_size_per_layer_input d_rel "
            "adapter_rank router_hidden_size gated_norm_rank loop_gate_rank hc_lowrank "
            "ple_embed_dim block_multiple_of index_topk index_block_size global_head_dim "
            "rotary_dim o_lora_rank block_size local_attention_window_len",
        ),
        (
            2 * _HEAD,
            # With few heads, the scores that choose keys would often be exactly 0 for several keys.
            "index_n_heads q_lora_rank kv_lora_rank qk_head_dim image_size crop_size "
            "num_position_embeddings ngram_vocab_size_base attention_head_dim",
        ),
        (
            CONTEXT,
            "max_position_embeddings n_positions n_ctx max_seq_len model_max_length "
            "context_length max_target_positions max_source_positions seq_length",
        ),
    )
    for name in names.split()
}
#: Fields that some architectures leave open, although they need a number at this width.
_OPEN = ("head_dim", "num_key_value_heads")


def names() -> list[str]:
    """The architectures that ``AutoModelForCausalLM`` knows, by their model type.

    An encoder is there twice: ``bert``, and ``bert+is_decoder`` for ``is_decoder=true``.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    decoders = [f"{name}{AS_DECODER}" for name in ENCODERS]
    return sorted([*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *decoders])


def build(name: str) -> tuple[Any, Any]:
    """A tiny random model.

    Args:
        name: One of :func:`names`.

    Returns:
        Its configuration and the model, which is in eval mode; the same at each call.
    """
    from transformers import AutoModelForCausalLM

    config = tiny_config(name)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    _enlarge(model)
    return config, model


@torch.no_grad()
def _enlarge(model: torch.nn.Module) -> None:
    """Make random weights large enough that a wrong position or mask is seen in the logits.

    Matrices get the spread of trained ones, and vectors (biases, scales) some noise. A matrix that
    is neither 0 nor centred on 0, such as Mamba's decays, stays as it is.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.dim() < 2:
            parameter.add_(torch.randn(parameter.shape), alpha=0.1)
            continue
        spread = float(parameter.std())
        wanted = 0.5 if id(parameter) in embeddings else 1.5 / parameter.shape[-1] ** 0.5
        if spread == 0 and not parameter.any():
            parameter.normal_(0.0, 0.2 * wanted)
        elif abs(float(parameter.mean())) < 0.5 * spread:
            parameter.mul_(wanted / spread)


def tiny_config(name: str) -> Any:
    """An architecture's configuration with few and narrow layers, but one layer of each kind.

    Args:
        name: One of :func:`names`.
    """
    from transformers import CONFIG_MAPPING

    decoder, name = name.endswith(AS_DECODER), name.removesuffix(AS_DECODER)
    kind: Any = CONFIG_MAPPING[name]
    exceptions = OVERRIDES.get(name, {})
    given = _shrunk(kind(**exceptions.get("default", {})), LAYERS.get(name))
    if decoder:
        given["is_decoder"] = True
    return kind(**_merged(given, {k: v for k, v in exceptions.items() if k != "default"}))


def _shrunk(config: Any, layers: list[int] | None = None) -> dict[str, Any]:
    """The arguments that make a tiny configuration of the same class."""
    from transformers.configuration_utils import PretrainedConfig

    standard = set(vars(PretrainedConfig()))
    accepted = set(inspect.signature(type(config).__init__).parameters) | set(vars(config))
    chosen = _layers_of_each_kind(config) if layers is None else layers
    count = getattr(config, "num_hidden_layers", 0)
    special: Iterator[int] = itertools.count(TOKENS)
    given: dict[str, Any] = {}
    for key, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            given[key] = _shrunk(value)
        elif key.startswith(("_", "ignore_keys")) or key not in accepted:
            continue
        elif value is None and key in _OPEN:
            given[key] = SIZES[key]
        elif key.endswith(("token_id", "token_index")):
            given[key] = _special_token(key, value, special)
        elif key in SIZES and isinstance(value, int) and not isinstance(value, bool):
            given[key] = SIZES[key] if value > 0 else value
        elif isinstance(value, list | tuple) and len(value) == count > 1:
            given[key] = [SIZES.get(key, value[i]) for i in chosen]
        elif key in ("rope_parameters", "rope_scaling") and value:
            given[key] = _short_rope(value)
        elif key not in standard:
            given[key] = value
    for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
        if key in given and chosen:
            given[key] = len(chosen)
    if "kv_lora_rank" in given:  # latent attention has a key for each query head
        given["num_key_value_heads"] = _HEADS
    return {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0} | given


def _layers_of_each_kind(config: Any) -> list[int]:
    """The numbers of layers that have every kind that the lists in a configuration name."""
    count = getattr(config, "num_hidden_layers", 0)
    lists = [
        value
        for value in vars(config).values()
        if isinstance(value, list | tuple) and len(value) == count > 1
    ]
    kinds = [tuple(map(str, one)) for one in zip(*lists, strict=True)]
    first = sorted({kind: i for i, kind in reversed(list(enumerate(kinds)))}.values())
    first = first[:_MOST_LAYERS]
    return sorted({*first, *range(2)}) if 0 < len(first) < 2 else first


def _special_token(key: str, value: Any, special: Iterator[int]) -> Any:
    """The id of a special token: what the tokenizer has, or one that no text has."""
    known = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if key in known:
        return known[key]
    unused = value is None or (isinstance(value, int) and value < 0)
    return value if unused else next(special)


def _short_rope(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary parameters for heads and a context of this size."""
    short: dict[str, Any] = {}
    for key, value in parameters.items():
        if isinstance(value, Mapping):
            short[key] = _short_rope(value)
        elif key in ("short_factor", "long_factor"):
            short[key] = value[: _HEAD // 2]
        else:
            short[key] = SIZES.get(key, value)
    return short


def _merged(one: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides on arguments, inside sub-configurations too."""
    both = dict(one)
    for key, value in other.items():
        if isinstance(value, Mapping) and isinstance(both.get(key), dict):
            both[key] = _merged(both[key], value)
        elif value is UNSET:
            both.pop(key, None)
        else:
            both[key] = value
    return both
