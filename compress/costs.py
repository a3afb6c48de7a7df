"""What a causal LM costs, from its config alone: parameters by part, cache, and FLOPs a token.

The model is made on the meta device (shapes, no memory) and run there once on a few tokens with an attention function
that only notes what it was asked. So heads, windows and cached values are those of the model's own code, whatever its
architecture. A model that does not run there is judged by the usual fields of its config.
"""

import contextlib
import copy
import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from compress.architecture import decoder_layers, empty_model

_TOKENS = 8
_PROBE = "compress_probe"
_APART = re.compile(r"vision|visual|image|img|audio|speech|depth_decoder|multi_modal|adapter_modality")
_PARTS = (
    ("norms", re.compile(r"(?i)norm|(^|\.)ln_?\w*\.(weight|bias)$")),
    ("experts", re.compile(r"(^|\.)experts(\.|$)")),
    ("router", re.compile(r"router|(mlp|moe|block_sparse_moe|feed_forward|ffn)\.gate\.|expert_bias|correction_bias")),
    (
        "recurrence",
        re.compile(r"mamba|linear_attn|ssm|recurrent|rg_lru|mlstm|mixer\.(A_log|D|conv1d|in_proj|dt|x_proj)|\.conv\."),
    ),
    ("attention", re.compile(r"attn|attention|attend|q_proj|k_proj|v_proj|o_proj")),
    ("mlp", re.compile(r"mlp|ffn|feed_?forward|shared_expert|fc\d|dense|intermediate|output\.|gate_up|down_proj|moe")),
)
"""What a parameter within the layers is part of, by its name; the first that matches counts."""


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """What one token costs. A multiplication and an addition are two FLOPs."""

    parameters: dict[str, int]
    """Parameters by part, tied ones counted once; their sum is the model's."""
    weight_flops: int
    """2 for each weight that a token is multiplied with: no embeddings, and of experts the active ones."""
    attention: tuple[AttentionCost, ...]
    cache: tuple[CacheCost, ...]

    def cache_bytes_per_token(self, bytes_per_value: int) -> int:
        """Bytes that each further token adds once every window is full: layers that look back without bound."""
        return bytes_per_value * sum(layer.values for layer in self.cache if layer.window is None)

    def cache_bytes(self, context: int, bytes_per_value: int) -> int:
        """Bytes of cache after `context` tokens: keys and values within their windows, and recurrent states."""
        kept = (layer.values * min(context, layer.window or context) + layer.state for layer in self.cache)
        return bytes_per_value * sum(kept)

    def decode_flops(self, context: int) -> float:
        """FLOPs of one token after `context` - 1 others: weights, attention over what it may see, states."""
        seen = sum(part.flops * min(context, part.window or context) for part in self.attention)
        return float(self.weight_flops + seen + self._state_flops)

    def prefill_flops(self, tokens: int) -> float:
        """Mean FLOPs a token of a prompt of `tokens`; token i looks at i + 1 tokens or at its window.

        The mean of min(i + 1, w) over n tokens is (w (w + 1) / 2 + (n - w) w) / n for w < n.
        """
        total = 0.0
        for part in self.attention:
            w = min(tokens, part.window or tokens)
            total += part.flops * (w * (w + 1) / 2 + (tokens - w) * w) / tokens
        return float(self.weight_flops + total + self._state_flops)

    @property
    def _state_flops(self) -> int:
        """4 for each number of a state: it is decayed and added to, and read."""
        return 4 * sum(layer.state for layer in self.cache)


def model_costs(config: Any) -> Costs:
    """The costs of the causal LM that a config describes. Raises as making the model does."""
    return costs_of(empty_model(copy.deepcopy(config)))


def costs_of(model: Any) -> Costs:
    """The costs of a model on the meta device, which can only be counted afterwards: its attention is replaced."""
    stack, layers = decoder_layers(model)
    attention, cache = _probe(model.eval(), stack, len(layers))
    return Costs(
        parameters=parameters_by_part(model),
        weight_flops=2 * sum(_multiplied(model, stack)),
        attention=attention,
        cache=cache,
    )


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Parameters of each part of a model, tied ones counted once, largest part first."""
    stack = decoder_layers(model)[0]
    head = model.get_output_embeddings()  # type: ignore[operator]
    embeddings = {name for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        if owner in embeddings:
            part = "embeddings"
        elif head is not None and any(parameter is own for own in head.parameters()):
            part = "head"
        elif _APART.search(name):
            part = "other"
        else:
            tail = name.removeprefix(f"{stack}.")
            part = next((part for part, pattern in _PARTS if pattern.search(tail)), "other")
        counts[part] += parameter.numel()
    return dict(counts.most_common())


def _multiplied(model: nn.Module, stack: str) -> Iterator[int]:
    """Of each matrix, how many weights a token is multiplied with; shared ones as often as they are used."""
    lookups = {name for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if (
            parameter.dim() < 2
            or name.endswith("bias")
            or name.rpartition(".")[0] in lookups
            or _APART.search(name.removeprefix(stack))
        ):
            continue
        match = re.search(r"(.*)\.experts(\.|$)", name)
        yield int(parameter.numel() * (_active_share(model, match[1]) if match else 1))


def _active_share(model: nn.Module, block: str) -> float:
    """Share of the experts of the module `block` that work on a token: top-k over their number."""
    owner = model.get_submodule(block)
    number = _attribute(owner, ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"))
    top_k = _attribute(owner, ("top_k", "topk", "num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"))
    return 1.0 if not number or not top_k else min(1.0, top_k / number)


def _attribute(owner: nn.Module, names: tuple[str, ...]) -> int | None:
    """The first of these attributes that a module, one below it or its config has."""
    configs = [module.config for module in owner.modules() if hasattr(module, "config")]
    for thing in (*owner.modules(), *configs):
        for name in names:
            value = getattr(thing, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None


def _probe(model: Any, stack: str, num_layers: int) -> tuple[tuple[AttentionCost, ...], tuple[CacheCost, ...]]:
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

    def probe(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        heads, window = query.shape[1], kwargs.get("sliding_window")
        cost = AttentionCost(2 * heads * (query.shape[-1] + value.shape[-1]), window)
        seen.append((module, cost))
        shape = (query.shape[0], query.shape[2], heads, value.shape[-1])
        return torch.empty(shape, device=query.device, dtype=query.dtype), None

    ALL_ATTENTION_FUNCTIONS.register(_PROBE, probe)
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
