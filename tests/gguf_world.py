"""A tiny Llama as a GGUF file, laid out as llama.cpp's converter does."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from helpers import byte_tokenizer, save_tiny_model
from transformers import AutoModelForCausalLM

_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_MERGE = "th"
VOCABULARY = 258
"""256 bytes, `<eos>` (id 256) and one pair: GGUF has no empty list of merges."""


def write_gguf(
    path: Path,
    *,
    stored: str = "F32",
    arch: str = "llama",
    tokenizer: bool = True,
    fields: dict[str, str | int] | None = None,
    but: tuple[str, ...] = (),
    more: tuple[str, ...] = (),
) -> Any:
    """Write a random Llama of four layers, its matrices in the type `stored`, and return the model that it was.

    `fields` are further metadata; the tensors `but` are left out, and vectors named `more` added.
    """
    model = AutoModelForCausalLM.from_pretrained(
        save_tiny_model(path.parent / f"{path.stem}-original", vocab_size=VOCABULARY), dtype=torch.float32
    )
    writer = gguf.GGUFWriter(path, arch)
    _write_shape(writer, model.config)
    if tokenizer:
        _write_tokenizer(writer)
    for name, value in (fields or {}).items():
        writer.add_string(name, value) if isinstance(value, str) else writer.add_uint16(name, value)
    for name, weights in _tensors(model):
        if name not in but:
            kind = gguf.GGMLQuantizationType[stored if weights.ndim > 1 else "F32"]
            writer.add_tensor(name, gguf.quantize(weights, kind), raw_dtype=kind)
    for name in more:
        writer.add_tensor(name, np.ones(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _write_shape(writer: Any, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)


def _write_tokenizer(writer: Any) -> None:
    ids = byte_tokenizer().get_vocab()
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*sorted(ids, key=ids.__getitem__), _MERGE])
    writer.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL, gguf.TokenType.NORMAL])
    writer.add_token_merges([" ".join(_MERGE)])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(256)


def _tensors(model: Any) -> list[tuple[str, np.ndarray]]:
    """The weights by llama.cpp's names, whose rotary pairs are neighbours within a head."""
    config, weights = model.config, {name: value.numpy() for name, value in model.state_dict().items()}
    found = [
        ("token_embd.weight", weights["model.embed_tokens.weight"]),
        ("output_norm.weight", weights["model.norm.weight"]),
    ]
    for layer in range(config.num_hidden_layers):
        for name, stored in _NAMES.items():
            value = weights[f"model.layers.{layer}.{name}.weight"]
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(stored)
            if heads is not None:
                value = value.reshape(heads, 2, -1, value.shape[-1]).swapaxes(1, 2).reshape(value.shape)
            found.append((f"blk.{layer}.{stored}.weight", value))
    return found
