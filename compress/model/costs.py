"""What a language model costs, from its config alone: parameters by part, cache, and FLOPs a token.

Weights are counted on the model made on the meta device (shapes, no memory), attention and cache by
`compress.model.probe`.
"""

import copy
import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import nn

from compress.model.kinds import is_masked
from compress.model.parts import decoder_layers, empty_model, vision_parameters
from compress.model.probe import AttentionCost, CacheCost, probe

_APART = re.compile(r"vision|visual|image|img|audio|speech|depth_decoder|multi_modal|adapter_modality")
_NORM = re.compile(r"(?i)norm|(^|\.)ln_?\w*\.(weight|bias)$")
_PARTS = (
    ("norms", _NORM),
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """What one token costs. A multiplication and an addition are two FLOPs."""

    parameters: dict[str, int]
    """Parameters by part, tied ones counted once; their sum is the model's."""
    weight_flops: int
    """2 for each weight that a token is multiplied with: no embeddings, and of experts the active ones."""
    attention: tuple[AttentionCost, ...]
    cache: tuple[CacheCost, ...]
    """Empty of a masked LM."""
    bidirectional: bool = False
    """Whether a token looks at those after it too: of a masked LM."""

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

        The mean of min(i + 1, w) over n tokens is (w (w + 1) / 2 + (n - w) w) / n for w < n. One that looks both ways
        looks at all of its window, whatever i.
        """
        total = 0.0
        for part in self.attention:
            w = min(tokens, part.window or tokens)
            total += part.flops * (w if self.bidirectional else (w * (w + 1) / 2 + (tokens - w) * w) / tokens)
        return float(self.weight_flops + total + self._state_flops)

    @property
    def _state_flops(self) -> int:
        """4 for each number of a state: it is decayed and added to, and read."""
        return 4 * sum(layer.state for layer in self.cache)


def model_costs(config: Any) -> Costs:
    """The costs of the language model that a config describes. Raises as making the model does."""
    return costs_of(empty_model(copy.deepcopy(config)))


def costs_of(model: Any) -> Costs:
    """The costs of a model on the meta device, which can only be counted afterwards: its attention is replaced."""
    stack, layers = decoder_layers(model)
    attention, cache = probe(model.eval(), stack, len(layers))
    return Costs(
        parameters=parameters_by_part(model),
        weight_flops=2 * sum(count for _, _, count in multiplied(model)),
        attention=attention,
        cache=() if is_masked(model) else cache,
        bidirectional=is_masked(model),
    )


def is_norm(name: str) -> bool:
    """Whether a parameter is a norm's, by its name."""
    return _NORM.search(".".join(name.split(".")[-2:])) is not None


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Parameters of each part of a model, tied ones counted once, largest part first."""
    stack = decoder_layers(model)[0]
    head = model.get_output_embeddings()  # type: ignore[operator]
    embeddings = {name for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    vision = vision_parameters(model)
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        if name in vision:
            part = "vision"
        elif owner in embeddings:
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


def multiplied(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, int]]:
    """Each matrix by name, and how many of its weights a token of text is multiplied with; shared ones as often as they
    are used."""
    stack, vision = decoder_layers(model)[0], vision_parameters(model)
    lookups = {name for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if (
            parameter.dim() < 2
            or name.endswith("bias")
            or name.rpartition(".")[0] in lookups
            or name in vision
            or _APART.search(name.removeprefix(stack))
        ):
            continue
        match = re.search(r"(.*)\.experts(\.|$)", name)
        yield name, parameter, int(parameter.numel() * (_active_share(model, match[1]) if match else 1))


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
