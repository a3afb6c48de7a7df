"""What a model's attention is asked and what its cache holds, noted while it runs on the meta device.

A few tokens go through the model's own code (shapes, no memory) with an attention function that only notes what it was
asked. So heads, windows and cached values are right whatever the architecture. A model that does not run there is
judged by the usual fields of its config.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_TOKENS = 8
_PROBE = "compress_probe"


@dataclasses.dataclass(frozen=True)
class AttentionCost:
    """One attention of one layer."""

    flops: int
    """FLOPs for each token that is looked at: 2 * heads * (key dim + value dim), for QK^T and AV."""
    window: int | None
    """Most tokens that are looked at; None for all before."""


@dataclasses.dataclass(frozen=True)
class CacheCost:
    """What one layer keeps while it generates."""

    values: int
    """Numbers that a token adds: keys and values."""
    window: int | None
    """Most tokens that are kept; None for all."""
    state: int = 0
    """Numbers kept whatever the length: states of recurrences and convolutions."""


def probe(model: Any, stack: str, num_layers: int) -> tuple[tuple[AttentionCost, ...], tuple[CacheCost, ...]]:
    """Run the model on the meta device; what its attention was asked and what its cache then holds."""
    usual = _usual(model.config.get_text_config(), num_layers)
    for part in (model, model.get_submodule(stack.rpartition(".")[0])):
        seen: list[tuple[Any, AttentionCost]] = []
        with _noting(model, seen), torch.no_grad(), contextlib.suppress(Exception):
            output = part(input_ids=torch.zeros(1, _TOKENS, dtype=torch.long, device="meta"), use_cache=True)
            break
    else:
        return usual
    cache = _cached(output)
    if cache is None:
        return usual if not seen else (tuple(cost for _, cost in seen), usual[1])
    costs = []
    for module, cost in seen:
        index = getattr(module, "layer_idx", None)
        window = cost.window
        if window is None and isinstance(index, int) and index < len(cache):
            window = cache[index].window
        costs.append(dataclasses.replace(cost, window=window))
    if not costs and any(layer.values for layer in cache):
        costs = list(usual[0])
    return tuple(costs), cache


@contextlib.contextmanager
def _noting(model: Any, seen: list[tuple[Any, AttentionCost]]) -> Iterator[None]:
    """Let the model's attention only be noted, and its experts be chosen without looking at numbers."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def note(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        heads, window = query.shape[1], kwargs.get("sliding_window")
        cost = AttentionCost(2 * heads * (query.shape[-1] + value.shape[-1]), window)
        seen.append((module, cost))
        shape = (query.shape[0], query.shape[2], heads, value.shape[-1])
        return torch.empty(shape, device=query.device, dtype=query.dtype), None

    ALL_ATTENTION_FUNCTIONS.register(_PROBE, note)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_PROBE, eager_mask)
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation_internal = _PROBE
            module.config._experts_implementation_internal = "batched_mm"
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop(_PROBE, None)
        ALL_MASK_ATTENTION_FUNCTIONS._global_mapping.pop(_PROBE, None)


def _cached(output: Any) -> tuple[CacheCost, ...] | None:
    """What each layer of a returned cache holds; None when nothing known was returned."""
    cache: Any = getattr(output, "past_key_values", None)
    cache = cache if cache is not None else getattr(output, "cache_params", None)
    cache = getattr(cache, "self_attention_cache", cache)
    if not hasattr(cache, "layers"):
        return None
    return tuple(map(_layer_cache, cache.layers))


def _layer_cache(layer: Any) -> CacheCost:
    values = 0
    for tensor in (getattr(layer, name, None) for name in ("keys", "values", "indexer_keys")):
        if isinstance(tensor, Tensor) and tensor.dim() >= 3 and tensor.shape[-2]:
            values += tensor.numel() // tensor.shape[-2]
    window = getattr(layer, "sliding_window", None) if getattr(layer, "is_sliding", False) else None
    state = 0
    for group in (getattr(layer, name, None) for name in ("conv_states", "recurrent_states")):
        for tensor in [group] if isinstance(group, Tensor) else (group or []):
            tensor = group[tensor] if isinstance(group, dict) else tensor
            state += tensor.numel() if isinstance(tensor, Tensor) else 0
    return CacheCost(values, window, state)


def _usual(text: Any, num_layers: int) -> tuple[tuple[AttentionCost, ...], tuple[CacheCost, ...]]:
    """Costs by the usual fields of a config, all layers alike; none where it has no attention heads."""
    text.allow_global_per_layer_attribute_access = True
    heads = getattr(text, "num_attention_heads", None)
    if not isinstance(heads, int) or not heads:
        return (), ()
    hidden = getattr(text, "hidden_size", None) or 0
    dim = getattr(text, "head_dim", None) or hidden // heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    window = getattr(text, "sliding_window", None)
    types = getattr(text, "layer_types", None) or []
    attention, cache = [], []
    for index in range(num_layers):
        kind = types[index] if index < len(types) else ""
        if kind in ("linear_attention", "mamba", "conv", "recurrent", "moe", "mlp"):
            continue
        bound = window if "sliding" in kind or not types else None
        attention.append(AttentionCost(4 * heads * dim, bound))
        cache.append(CacheCost(2 * kv_heads * dim, bound))
    return tuple(attention), tuple(cache)
