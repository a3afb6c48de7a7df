"""A tiny model of every causal LM that the installed transformers has, with a pattern of layers that is not uniform.

A config is made from its class: sizes by the name of the field, lists with an entry a layer filled with the kinds of
layer that the class's own default has, and what a single type needs on top (`OVERRIDES`).
"""

import copy
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

NUM_LAYERS = 6
VOCABULARY = 257
TYPES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))

_HIDDEN, _INNER, _HEADS, _KV_HEADS, _HEAD_DIM, _WINDOW = 32, 48, 4, 2, 8, 6

SIZES: Mapping[str, Any] = {
    **dict.fromkeys(("vocab_size", "n_words", "vocab_size_per_layer_input", "pad_vocab_size"), VOCABULARY),
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "emb_dim", "embedding_size", "word_embed_proj_dim", "embedding_dim",
         "input_embedding_size", "output_embedding_size", "attention_hidden_size", "linear_inner_size", "lru_width"),
        _HIDDEN,
    ),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner", "dff", "dim_ff", "d_inner",
         "moe_intermediate_size", "shared_expert_intermediate_size", "intermediate_size_mlp", "ffn_hidden_size",
         "expert_ffn_hidden_size", "dense_intermediate_size", "shared_intermediate_size", "feed_forward_size",
         "moe_shared_expert_intermediate_size", "shared_experts_intermediate_size", "prefix_dense_intermediate_size"),
        _INNER,
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers",
         "n_layer", "n_layers", "num_layers", "num_blocks"),
        NUM_LAYERS,
    ),
    **dict.fromkeys(
        ("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads", "attention_heads", "n_head",
         "n_heads", "num_heads", "num_encoder_attention_heads", "num_decoder_attention_heads",
         "swa_num_attention_heads", "linear_num_value_heads", "linear_num_heads"),
        _HEADS,
    ),
    **dict.fromkeys(
        ("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "linear_num_key_heads",
         "num_query_groups"),
        _KV_HEADS,
    ),
    **dict.fromkeys(
        ("head_dim", "d_head", "dim_head", "kv_channels", "swa_head_dim", "global_head_dim", "v_head_dim",
         "qk_nope_head_dim", "qk_rope_head_dim", "linear_key_head_dim", "linear_value_head_dim", "linear_head_dim",
         "attention_head_dim", "attention_head_size", "index_head_dim", "rotary_dim", "query_pre_attn_scalar"),
        _HEAD_DIM,
    ),
    **dict.fromkeys(
        ("sliding_window", "sliding_window_size", "attention_chunk_size", "window_size", "local_attention",
         "attention_window_size"),
        _WINDOW,
    ),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length", "model_max_length",
         "max_target_positions", "max_source_positions"),
        128,
    ),
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4
    ),
    **dict.fromkeys(
        ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"), 2
    ),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group"), 1),
    **dict.fromkeys(
        ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_nextn_predict_layers"), 1
    ),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank"), 16),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 8),
    **dict.fromkeys(("mamba_n_groups", "mamba_ngroups", "n_groups"), 2),
    **dict.fromkeys(("mamba_dt_rank", "time_step_rank"), 4),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 16),
    **dict.fromkeys(("bos_token_id", "eos_token_id"), VOCABULARY - 1),
    "pad_token_id": 1,
    "mamba_d_ssm": 64,
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 4,
    "index_topk": 4,
    "index_n_heads": 32,
    "rescale_every": 0,
    "is_decoder": True,
    "decoder_sparse_step": 2,
    "use_sliding_window": True,
    "use_mamba_kernels": False,
    "layerdrop": 0.0,
    "hidden_dropout": 0.0,
}  # fmt: skip
"""Value of a field by its name, for every class that has it."""

PATTERN = (0, 1, 1, 0, 2, 1)
"""Which of its kinds a layer is, where a list has an entry a layer (modulo their number)."""

_SLIDING_FULL = [
    "sliding_attention",
    "full_attention",
    "full_attention",
    "sliding_attention",
    "full_attention",
    "sliding_attention",
]
_HYBRID = [
    "linear_attention",
    "linear_attention",
    "full_attention",
    "linear_attention",
    "linear_attention",
    "full_attention",
]
_MIXED_MLP = ["dense", "sparse", "sparse", "dense", "dense", "sparse"]
_SHARED_KV = {
    "layer_types": [
        "sliding_attention",
        "full_attention",
        "sliding_attention",
        "full_attention",
        "sliding_attention",
        "full_attention",
    ],
    "num_kv_shared_layers": 2,
}
_QWEN_WINDOW = {"max_window_layers": 3}

OVERRIDES: Mapping[str, Mapping[str, Any]] = {
    "afmoe": {"num_dense_layers": 2},
    "bamba": {"attn_layer_indices": [2, 5]},
    "cohere2_moe": {"mlp_layer_types": _MIXED_MLP},
    "deepseek_v2": {"first_k_dense_replace": 2},
    "deepseek_v3": {"first_k_dense_replace": 2},
    "deepseek_v4": {
        "head_dim": 16,
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
        "o_groups": 2,
    },
    "dots1": {"first_k_dense_replace": 2, "layer_types": _SLIDING_FULL},
    "ernie4_5_moe": {"moe_layer_start_index": 1, "moe_layer_end_index": 3},
    "dots3_note_text": {
        "per_layer_config": {
            layer: {"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 8, "head_dim": 16}
            for layer in ("1", "2", "5")
        }
    },
    "flint": {"mlp_only_layers": [1]},
    "gemma3n_text": {
        **_SHARED_KV,
        "intermediate_size": [48, 32, 48, 64, 32, 48],
        "activation_sparsity_pattern": [0.95, 0.0, 0.5, 0.0, 0.9, 0.0],
    },
    "gemma4_text": {**_SHARED_KV, "global_head_dim": 16, "use_double_wide_mlp": True},
    "gemma4_unified_text": {**_SHARED_KV, "global_head_dim": 16},
    "glm4_moe": {"first_k_dense_replace": 2},
    "glm_moe_dsa": {"indexer_types": ["full", "full", "shared", "full", "shared", "shared"]},
    "gpt_neo": {"attention_types": [[["global", "local", "local"], 2]]},
    "granite_swa": {"layer_rope_theta": [1e4, 1e2, 1e3, 1e4, 1e1, 1e3]},
    "granitemoe_swa": {"layer_rope_theta": [1e4, 1e2, 1e3, 1e4, 1e1, 1e3]},
    "granitemoehybrid": {"layer_types": _HYBRID},
    "hunyuan_v1_moe": {"moe_topk": [1, 2, 1, 2, 3, 1]},
    "inkling_text": {"mlp_layer_types": _MIXED_MLP},
    "jamba": {"attn_layer_period": 3, "attn_layer_offset": 2, "expert_layer_period": 2},
    "laguna": {"layer_types": _SLIDING_FULL, "num_attention_heads_per_layer": [4, 2, 4, 6, 2, 4]},
    "lfm2": {"layer_types": ["conv", "full_attention", "full_attention", "conv", "conv", "full_attention"]},
    "lfm2_moe": {
        "layer_types": ["conv", "full_attention", "full_attention", "conv", "conv", "full_attention"],
        "num_dense_layers": 2,
    },
    "llama4_text": {"moe_layers": [1, 3, 4], "no_rope_layers": [1, 0, 1, 0, 0, 1]},
    "longcat_flash": {"num_hidden_layers": 2 * NUM_LAYERS, "zero_expert_num": 2},
    "mamba2": {"num_heads": 8},
    "mellum": {"layer_types": _SLIDING_FULL, "mlp_layer_types": _MIXED_MLP},
    "minimax_m3_vl_text": {
        "layer_types": [
            "minimax_m3_sparse",
            "full_attention",
            "full_attention",
            "minimax_m3_sparse",
            "full_attention",
            "minimax_m3_sparse",
        ],
        "mlp_layer_types": _MIXED_MLP,
        "index_block_size": 4,
        "index_topk_blocks": 2,
        "index_n_heads": _KV_HEADS,
    },
    "ministral": {"layer_types": _SLIDING_FULL},
    "minimax": {"layer_types": _HYBRID},
    "mllama_text_model": {"cross_attention_layers": [1, 4]},
    "modernbert-decoder": {"sliding_window": 12},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "linear_attention", "full_attention"]
    },
    "qwen2": _QWEN_WINDOW,
    "qwen2_moe": {**_QWEN_WINDOW, "mlp_only_layers": [3]},
    "qwen3": _QWEN_WINDOW,
    "qwen3_moe": {"mlp_only_layers": [3]},
    "qwen3_next": {"mlp_only_layers": [3]},
    "qwen4_exp_text": {
        "ple_layer_ids": [1, 5],
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "ple_embed_dim": 32,
        "ngram_vocab_size_base": 300,
        "hc_lowrank": 8,
        "split_ngram_parts": 2,
    },
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 16]},
    "smollm3": {"no_rope_layers": [1, 0, 0, 1, 1, 0], "max_window_layers": 2},
    "cohere_compass_text": {
        "layer_types": _SLIDING_FULL,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": theta, "mrope_section": [2, 1, 1]}
            for kind, theta in (("full_attention", 1e4), ("sliding_attention", 1e2))
        },
    },
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "chunk_size": 64},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 64, "attention_head_dim": 16},
    "zaya": {
        "num_experts_per_tok": 1,
        "layer_types": ["hybrid", "hybrid_sliding", "hybrid_sliding", "hybrid", "hybrid", "hybrid_sliding"],
    },
}
"""What a type's language model needs beyond `SIZES`."""

OUTER: Mapping[str, Mapping[str, Any]] = {
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "dots3_note": {
        "vision_config": {"adapter_in_dim": _HIDDEN, "adapter_out_dim": _HIDDEN},
        "audio_config": {"adapter_input_size": _HIDDEN, "adapter_out_dim": _HIDDEN},
    },
    "emu3": {"vocabulary_map": {"<image>": 2}},
    "gemma4_assistant": {
        "text_config": {
            "model_type": "gemma4_text",
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
            "use_double_wide_mlp": False,
            "num_kv_shared_layers": NUM_LAYERS,
        }
    },
    "gemma4": {"vision_config": None, "audio_config": None},
    "gemma4_unified": {"vision_config": None, "audio_config": None},
}
"""What a composite config needs beside its language model."""


_TOWER = re.compile("vision|image|audio|depth")


@functools.cache
def config_class(model_type: str) -> type[PretrainedConfig]:
    return CONFIG_MAPPING[model_type]


def tiny_config(model_type: str, **overrides: Any) -> PretrainedConfig:
    """A config of a few thousand parameters and 6 layers; `overrides` go to the language model."""
    cls = config_class(model_type)
    outer = OUTER.get(model_type, {})
    fields = _fields(cls) | dict(outer)
    for name in {name for name in cls.sub_configs if outer.get(name, {}) is not None}:
        named = outer.get(name, {}).get("model_type")
        part = config_class(named) if named else _class_of(cls, name)
        fields[name] = _fields(part) | {"model_type": part.model_type} | outer.get(name, {})
        if name == "text_config":
            fields[name] |= dict(OVERRIDES.get(part.model_type, {})) | outer.get(name, {}) | overrides
    if "text_config" not in cls.sub_configs:
        fields |= dict(OVERRIDES.get(model_type, {})) | overrides
    return cls(**fields)


@functools.cache
def _default(cls: type[PretrainedConfig]) -> PretrainedConfig | None:
    """The class's own config; None for a class whose defaults contradict themselves (gemma4_assistant)."""
    try:
        return cls()
    except Exception:
        return None


def _class_of(cls: type[PretrainedConfig], name: str) -> type[PretrainedConfig]:
    declared = cls.sub_configs[name]
    return type(getattr(_default(cls), name)) if declared is AutoConfig else declared


def _fields(cls: type[PretrainedConfig]) -> dict[str, Any]:
    known = {name: value for name, value in SIZES.items() if name in cls.__dataclass_fields__}
    default = _default(cls)
    if "kv_lora_rank" in known:
        known["num_key_value_heads"] = _HEADS
    for name in ("layer_types", "mlp_layer_types", "layers_block_type", "indexer_types"):
        kinds = list(dict.fromkeys(getattr(default, name, None) or []))
        if name in cls.__dataclass_fields__ and len(kinds) > 1:
            known[name] = [kinds[which % len(kinds)] for which in PATTERN]
    return copy.deepcopy(known)


def save_teacher(folder: Path, model_type: str, **overrides: Any) -> Path:
    """Save a random fp32 model of a type in which every layer matters: weights ~ N(0, 0.2^2), norms near their own.

    Where the causal LM is only the text part of a composite type, what is saved is the whole, as checkpoints are.
    """
    torch.manual_seed(0)
    config = tiny_config(model_type, **overrides)
    model = AutoModelForCausalLM.from_config(config).float()
    if type(model.config) is not type(config):
        model = AutoModelForImageTextToText.from_config(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if (parameter.dim() == 1 and "norm" in name) or "ln_" in name:
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(0.2 * noise)
    model.save_pretrained(folder)
    return folder


def layer_stack(model: nn.Module) -> nn.ModuleList:
    """The decoder's layers: the one list of as many modules as the zoo's models have layers, towers apart."""
    stacks = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == NUM_LAYERS and not _TOWER.search(name)
    }
    (stack,) = stacks.values()
    return stack
