"""Random models of a few thousand weights, one for each kind of architecture."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.conftest import WORDS, save_tokenizer

_SIZES = {
    "vocab_size": len(WORDS) + 8,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
_MAMBA2 = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1,
           "mamba_expand": 2, "mamba_chunk_size": 16}  # fmt: skip
_BART = {"encoder_layers": 2, "decoder_layers": 4, "d_model": 32, "encoder_ffn_dim": 48,
         "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
         "vocab_size": len(WORDS) + 8}  # fmt: skip
_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
           "num_attention_heads": 4, "image_size": 16, "patch_size": 8}  # fmt: skip

#: What each architecture's configuration has beyond its class's defaults.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _SIZES | _GROUPED,
    "gpt2": {"vocab_size": len(WORDS) + 8, "n_embd": 32, "n_layer": 4, "n_head": 4},
    "opt": _SIZES | {"word_embed_proj_dim": 16, "ffn_dim": 48},
    "mixtral": _SIZES | _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": _SIZES | _GROUPED | _EXPERTS
    | {"num_experts": 4, "mlp_only_layers": [1], "decoder_sparse_step": 1},
    "qwen2_moe": _SIZES | _GROUPED | _EXPERTS
    | {"num_experts": 4, "shared_expert_intermediate_size": 24},
    "qwen3_next": _SIZES | _GROUPED | _EXPERTS
    | {"num_experts": 4, "shared_expert_intermediate_size": 24, "linear_num_key_heads": 2,
       "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    "gpt_oss": _SIZES | _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": _SIZES | _EXPERTS
    | {"num_key_value_heads": 4, "intermediate_size": 48, "n_routed_experts": 4, "n_group": 1,
       "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1, "q_lora_rank": 12,
       "kv_lora_rank": 12, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
    "llama4_text": _SIZES | _GROUPED
    | {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 48},
    "mamba": _SIZES | {"state_size": 4, "time_step_rank": 4, "expand": 2},
    "mamba2": _SIZES
    | {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "expand": 2,
       "chunk_size": 16},
    "falcon_h1": _SIZES | _GROUPED | _MAMBA2 | {"mamba_d_ssm": 64},
    "bamba": _SIZES | _GROUPED | _MAMBA2 | {"attn_layer_indices": [1]},
    "jamba": _SIZES | _GROUPED
    | {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4, "mamba_d_state": 8,
       "num_experts": 4},
    "nemotron_h": _SIZES | _GROUPED
    | {"mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1, "ssm_state_size": 8,
       "chunk_size": 16, "layers_block_type": ["mamba", "attention", "mamba", "attention"]},
    "longcat_flash": _SIZES
    | {"num_hidden_layers": 8, "num_layers": 4, "ffn_hidden_size": 48,
       "expert_ffn_hidden_size": 24, "n_routed_experts": 4, "zero_expert_num": 2, "moe_topk": 2,
       "q_lora_rank": 12, "kv_lora_rank": 12, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
       "v_head_dim": 8},
    "bart": _BART,
    "blenderbot": _BART,
    "gemma3": {
        "text_config": _SIZES | _GROUPED
        | {"model_type": "gemma3_text", "layer_types": ["full_attention"] * 4},
        "vision_config": _VISION | {"model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 4,
    },
    "got_ocr2": {
        "text_config": _SIZES | _GROUPED | {"model_type": "qwen2"},
        "vision_config": _VISION
        | {"model_type": "", "mlp_dim": 48, "output_channels": 16, "global_attn_indexes": [0]},
    },
    "bert": _SIZES | {"intermediate_size": 48},
    "t5": {"vocab_size": len(WORDS) + 8, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2,
           "num_heads": 4},
}  # fmt: skip


def tiny_config(name: str, **changes: Any) -> Any:
    """A configuration of an architecture, with some of its values changed."""
    return AutoConfig.for_model(name, **CONFIGS[name] | changes)


def tiny_model(name: str, **changes: Any) -> Any:
    """A random model of an architecture, the same at each call, in eval mode."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(name, **changes)).eval()


def save_tiny(name: str, folder: Path, **changes: Any) -> Path:
    """Write a random model and the word-level tokenizer to a folder."""
    tiny_model(name, **changes).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_config(name: str, folder: Path, **changes: Any) -> Path:
    """Write a configuration and the word-level tokenizer to a folder, without any weights."""
    tiny_config(name, **changes).save_pretrained(folder)
    save_tokenizer(folder)
    # What is tested needs no weights, but a folder without their file is no checkpoint, and neither
    # is one whose file is far too small for them.
    save_file({}, folder / "model.safetensors", metadata={"room": " " * 200_000})
    return folder
