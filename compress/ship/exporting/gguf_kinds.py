"""Model types that a GGUF file has names for, as llama.cpp's converter writes them and transformers reads them back."""

import dataclasses
from typing import Any

from compress.base.errors import InputError


@dataclasses.dataclass(frozen=True)
class Kind:
    """A model type in GGUF."""

    architecture: str
    """`general.architecture`."""
    pairs_rotate: bool = False
    """Whether the two numbers that a position rotates together lie side by side in a head, and not half a head apart
    as in transformers."""


KINDS = {"llama": Kind("llama", pairs_rotate=True), "qwen2": Kind("qwen2"), "qwen3": Kind("qwen3")}
"""By transformers' model type."""
_ONLY = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
}
"""Values that a GGUF file has no field for: it means these."""


def kind_of(name: str, config: Any) -> Kind:
    """The kind of the model `name` with a `PretrainedConfig`.

    Raises:
        InputError: GGUF has no name for it here, or none for a value in its config.
    """
    kind = KINDS.get(config.model_type)
    if kind is None:
        raise InputError(
            f"{name} is of the type {config.model_type}, which is not exported as GGUF (only {', '.join(KINDS)}). "
            "Export it as int8 or int4, or convert it with llama.cpp's convert_hf_to_gguf.py."
        )
    unlike = {key: value for key, only in _ONLY.items() if (value := getattr(config, key, only)) != only}
    rope = getattr(config, "rope_parameters", None) or {}
    if (scaling := rope.get("rope_type", "default")) != "default":
        unlike["rope_parameters.rope_type"] = scaling
    if unlike:
        said = ", ".join(f"{key} = {value}" for key, value in unlike.items())
        raise InputError(
            f"{name} has {said}, which transformers does not read from a GGUF file: it would be another model there. "
            "Export it as int8 or int4, or convert it with llama.cpp's convert_hf_to_gguf.py."
        )
    return kind


def write_shape(writer: Any, config: Any) -> None:
    """Put the model's shape into the metadata of a `GGUFWriter`."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
