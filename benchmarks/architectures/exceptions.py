"""What the generic rule for tiny configurations gets wrong, by architecture."""

from typing import Any

#: Encoders by default, whose attention also sees later tokens; each is built as a decoder as well.
ENCODERS = (
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie",
    "megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
#: What follows the name of an encoder that is built as a decoder.
AS_DECODER = "+is_decoder"
#: In place of a value: leave the argument to the configuration class.
UNSET = object()
#: The layers to take, where the lists in the configuration do not tell, or not all kinds are met.
LAYERS: dict[str, list[int]] = {
    "dory": [1, 2, 3, 4],
    "gemma3n_text": [3, 4, 8, 9],
    "recurrent_gemma": [0, 1, 2],
    "zamba": [1, 2, 3, 7],
    "zamba2": [5, 6, 11, 12],
}
_INDEXED_ATTENTION = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
    "ple_layer_ids": [1],
    "number_of_conv_states": 3,
    "heads_per_ngram": 2,
    "split_ngram_parts": 2,
    "make_ngram_vocab_size_divisible_by": 8,
}
_SLIDING_LATENT = {
    "per_layer_config": UNSET,
    "swa_head_dim": 16,
    "swa_kv_lora_rank": 16,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 16,
    "swa_qk_nope_head_dim": 8,
    "swa_qk_rope_head_dim": 8,
    "swa_v_head_dim": 8,
}
#: Arguments that differ; those of ``default`` make the configuration that is then made smaller.
OVERRIDES: dict[str, dict[str, Any]] = {
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "bamba": {"attn_layer_indices": [1]},
    "cohere": {"logit_scale": 1.0},
    "cohere2": {"logit_scale": 1.0},
    "cohere2_moe": {"logit_scale": 1.0},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": None,
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 1, 1],
            },
        },
    },
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"default": {"num_experts_per_tok": 2}},
    "doge": {"is_moe": True},
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 2, "n_output_layers": 1},
    "dots3_note": {"audio_config": {"adapter_input_size": 32}, "text_config": _SLIDING_LATENT},
    "dots3_note_text": _SLIDING_LATENT,
    "gemma4_assistant": {
        "default": {
            "text_config": {
                "model_type": "gemma4_text",
                "hidden_size_per_layer_input": 0,
                "vocab_size_per_layer_input": 0,
            }
        },
        "text_config": {"num_kv_shared_layers": 2},
        "backbone_hidden_size": 32,
    },
    "gemma4_unified_assistant": {
        "text_config": {"num_kv_shared_layers": 2},
        "backbone_hidden_size": 32,
    },
    "dots1": {
        "default": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
        "first_k_dense_replace": 1,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "flint": {"mlp_only_layers": [0]},
    "gemma3n_text": {"num_kv_shared_layers": 2},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "hrm_text": {"num_layers_per_stack": UNSET, "H_cycles": 2, "L_cycles": 2},
    "inkling_text": {"logits_mup_width_multiplier": 1.0},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 3, "attn_layer_offset": 1},
    "lfm2_moe": {"num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "minicpm3": {"dim_model_base": 32, "scale_emb": 2},
    "qwen4_exp": {"text_config": _INDEXED_ATTENTION},
    "qwen4_exp_text": _INDEXED_ATTENTION,
    "reformer": {
        "is_decoder": True,
        "hash_seed": 0,
        "num_buckets": 4,
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [8, 16],
        "axial_pos_embds_dim": [16, 16],
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
    },
    "xlstm": {"hidden_size": 64, "embedding_dim": 64, "qk_dim_factor": 1.0, "chunk_size": 16},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 64},
    "zamba2": {"attention_hidden_size": 64, "hybrid_layer_ids": [1, 3]},
    "zaya": {"num_experts_per_tok": 1},
}
