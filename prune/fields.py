"""Tables: which config field follows which rule, and which model types we know to the last field.

Made by reading `configuration_*.py` and `modeling_*.py` of transformers 5.23. A field means the same in every
model type that has it.
"""

from collections.abc import Mapping

from compress.prune.rules import (
    Rule,
    becomes,
    each_layer,
    gpt_neo_types,
    last_index,
    layer_indices,
    layer_keys,
    only,
    prefix_count,
    repeated_pattern,
    sparse_step,
    written_out_by,
)

VERIFIED_TYPES = frozenset(
    {
        "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3", "olmo2", "phi3", "gpt2", "gpt_neox",
        "opt",
    }
)  # fmt: skip
"""Types whose every field was read and whose students equal their teachers with skipped layers in our tests. Others
are cut only when the check against the teacher can run."""

REFUSED_TYPES: Mapping[str, str] = {
    "diffllama": "its attention's lambda_init is computed from the layer's index",
    "hrm_text": "its layers are run several times in stacks of fixed size",
}
"""Types that no rule can express, and why."""

_PERIOD = "a period cannot describe an irregular choice of layers"
_INDEX = "it makes the computation depend on a layer's index, which changes"

RULES: Mapping[str, Rule] = {
    # one entry a layer
    "layer_types": each_layer,
    "mlp_layer_types": each_layer,
    "no_rope_layers": each_layer,
    "layers_block_type": each_layer,
    "indexer_types": each_layer,
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
    "mlp_only_layers": layer_indices,
    "attn_layer_indices": layer_indices,
    "moe_layers": layer_indices,
    "full_attn_idxs": layer_indices,
    "hybrid_layer_ids": layer_indices,
    "cross_attention_layers": layer_indices,
    "local_layer_ids": layer_indices,
    "per_layer_config": layer_keys,
    # counts from one end
    "max_window_layers": prefix_count,
    "first_k_dense_replace": prefix_count,
    "num_dense_layers": prefix_count,
    "moe_layer_start_index": prefix_count,
    "moe_layer_end_index": last_index,
    "num_kv_shared_layers": only(0, why="its last layers read the keys and values of earlier ones, which may go"),
    # periods
    "sliding_window_pattern": written_out_by("layer_types"),
    "_sliding_window_pattern": written_out_by("layer_types"),
    "global_attn_every_n_layers": written_out_by("layer_types"),
    "no_rope_layer_interval": written_out_by("no_rope_layers"),
    "interleave_moe_layer_step": written_out_by("moe_layers"),
    "decoder_sparse_step": sparse_step,
    "block_types": repeated_pattern,
    "moe_layer_interval": only(1, why=_PERIOD),
    "attn_layer_period": only(1, why=_PERIOD),
    "attn_layer_offset": only(0, why=_PERIOD),
    "expert_layer_period": only(1, why=_PERIOD),
    "expert_layer_offset": only(0, why=_PERIOD),
    "layer_group_size": only(1, why=_PERIOD),
    "n_layers_per_attn_res_block": only(why=_PERIOD),
    "num_layers_per_stack": only(why=_PERIOD),
    # arithmetic on the index
    "scale_attn_by_inverse_layer_idx": only(False, why=_INDEX + ": attention is scaled by 1 / (index + 1)"),
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
        "task_specific_params", "time_step_limit", "dtype", "torch_dtype",
    }
)  # fmt: skip
"""Fields whose list or mapping may have as many entries as the model has layers, by chance."""
