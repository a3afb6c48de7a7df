"""Tables: which config field follows which rule, and which model types we know to the last field.

Made by reading `configuration_*.py` and `modeling_*.py` of transformers 5.23. A field means the same in every
model type that has it.
"""

from collections.abc import Mapping

from compress.prune.rules.layer_rules import LayerRule, keeps_all, keeps_first, keeps_first_of, keeps_last, last_is
from compress.prune.rules.rules import (
    Rule,
    becomes,
    depth_scale,
    each_layer,
    gpt_neo_types,
    interval,
    layer_indices,
    layer_keys,
    one_based,
    only,
    period,
    prefix_count,
    repeated_pattern,
    shared_indexer,
    shared_key_values,
    sparse_step,
    stack_size,
    written_out_by,
)

VERIFIED_TYPES = frozenset(
    {
        "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "smollm3",
        "olmo", "olmo2", "olmo3", "olmoe", "phi", "phi3", "gpt2", "gpt_neox", "gpt_oss", "opt", "granite", "granitemoe",
        "cohere", "glm4", "deepseek_v3", "ernie4_5", "helium", "nemotron", "seed_oss", "stablelm", "starcoder2",
    }
)  # fmt: skip
"""Types of which every use of a layer's index was read in their code, and whose students equal their teachers with
skipped layers in docs/model_types.md. Others are cut only when the check against the teacher can run."""

REFUSED_TYPES: Mapping[str, str] = {
    "diffllama": "its attention's lambda_init is computed from the layer's index",
    "hrm_text": "its layers are run several times in stacks of fixed size",
    "beam": "its residuals are scaled by the layer's index",
    "inkling2_text": "its layers attend to the outputs of blocks of layers of fixed size",
    "mllama": "layers of its own, by their number, look at the image",
    "zaya": "each layer's router reads what the router of the layer before it gave",
    "reformer": "its layers are reversible and pass two streams to each other",
    "xlnet": "its layers pass two streams to each other, of which one can be compared",
    "xlm": "it keeps the parts of its layers in separate lists",
    "blt": "it is four stacks of layers, of bytes and of patches",
    "gemma4_assistant": "all its layers read the keys and values of another model",
    "gemma4_unified_assistant": "all its layers read the keys and values of another model",
}
"""Types that no rule can express, and why."""

LAYER_RULES: Mapping[str, LayerRule] = {
    "modernbert": keeps_first("it alone has no norm before its attention"),
    "deberta-v2": keeps_first("the convolution after it reads what it was given", where="conv_kernel_size"),
    "modernbert-decoder": keeps_first("it alone has no norm before its attention"),
    "rwkv": keeps_first("it alone has a norm of its own"),
    "gpt_neox_japanese": keeps_last("it alone has a bias after its attention"),
    "gemma4_text": last_is("full_attention"),
    "gemma4_unified_text": last_is("full_attention"),
    "zamba": keeps_first_of("hybrid", "layers_block_type", "the others use its weights"),
    "zamba2": keeps_all("hybrid", "layers_block_type", "they share weights and have adapters by their number"),
}
"""What a type asks of the choice of layers."""

STACK_COUNTS: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "bart",
            "bigbird_pegasus",
            "blenderbot",
            "blenderbot-small",
            "marian",
            "mbart",
            "mvp",
            "pegasus",
            "plbart",
            "whisper",
            "trocr",
        ),
        "decoder_layers",
    ),
    "prophetnet": "num_decoder_layers",
    "longcat_flash": "num_layers",
}
"""Field with the number of layers of the causal LM's stack, where that is not `num_hidden_layers`."""

_INDEX = "it makes the computation depend on a layer's index, which changes"

RULES: Mapping[str, Rule] = {
    # one entry a layer
    "layer_types": each_layer,
    "mlp_layer_types": each_layer,
    "no_rope_layers": each_layer,
    "layers_block_type": each_layer,
    "indexer_types": shared_indexer,
    "layer_rope_theta": each_layer,
    "num_attention_heads_per_layer": each_layer,
    "num_attention_heads": each_layer,
    "num_key_value_heads": each_layer,
    "intermediate_size": each_layer,
    "activation_sparsity_pattern": each_layer,
    "num_experts": each_layer,
    "moe_topk": each_layer,
    "attention_layers": each_layer,
    "attention_types": gpt_neo_types,
    # indices of layers
    "attn_layer_indices": layer_indices,
    "moe_layers": layer_indices,
    "full_attn_idxs": layer_indices,
    "hybrid_layer_ids": layer_indices,
    "cross_attention_layers": layer_indices,
    "local_layer_ids": layer_indices,
    "ple_layer_ids": one_based,
    "per_layer_config": layer_keys,
    # counts from one end
    "num_blocks": stack_size,
    "max_window_layers": prefix_count,
    "first_k_dense_replace": prefix_count,
    "num_dense_layers": prefix_count,
    "num_kv_shared_layers": shared_key_values,
    # periods
    "sliding_window_pattern": written_out_by("layer_types"),
    "_sliding_window_pattern": written_out_by("layer_types"),
    "global_attn_every_n_layers": written_out_by("layer_types"),
    "no_rope_layer_interval": written_out_by("no_rope_layers"),
    "interleave_moe_layer_step": written_out_by("moe_layers"),
    "layer_group_size": written_out_by("layer_types"),
    "decoder_sparse_step": sparse_step,
    "mlp_only_layers": sparse_step,
    "block_types": repeated_pattern,
    "moe_layer_interval": interval,
    "moe_layer_start_index": interval,
    "moe_layer_end_index": interval,
    "attn_layer_period": period("attn_layer_period", "attn_layer_offset"),
    "attn_layer_offset": period("attn_layer_period", "attn_layer_offset"),
    "expert_layer_period": period("expert_layer_period", "expert_layer_offset"),
    "expert_layer_offset": period("expert_layer_period", "expert_layer_offset"),
    # arithmetic on the index
    "scale_attn_by_inverse_layer_idx": only(False, why=_INDEX + ": attention is scaled by 1 / (index + 1)"),
    "scale_depth": depth_scale,
    "rescale_every": only(0, why=_INDEX + ": layers are rescaled by 2 ** (index // rescale_every)"),
    # parts beyond the stack, which go
    "num_nextn_predict_layers": becomes(0),
    # other things a cut cannot carry
    "pruned_heads": only({}, why="single heads were pruned by layer index"),
    "quantization_config": only(why="the weights are quantized; give the unquantized model"),
}

NOT_PER_LAYER = frozenset(
    {
        "architectures", "auto_map", "bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id",
        "rope_parameters", "rope_scaling", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids",
        "task_specific_params", "time_step_limit", "dtype", "torch_dtype", "mtp_layer_types", "mtp_layers_block_type",
        "mtp_mlp_layer_types", "mtp_local_layer_ids", "mtp_per_layer_config", "languages", "pos_att_type",
    }
)  # fmt: skip
"""Fields whose list or mapping may have as many entries as the model has layers, by chance."""
