"""What kind of layer each layer is: how it looks back, and whether its MLP is dense or a mixture of experts."""

from collections.abc import Sequence
from typing import Any

_ATTENTION_LISTS = ("layer_types", "layers_block_type", "attention_layers", "attn_layers")
_DENSE_PREFIXES = ("first_k_dense_replace", "num_dense_layers")


def layer_kinds(text: Any, num_layers: int) -> list[str]:
    """The kind of each layer of a language model's config, such as `sliding_attention` or `full_attention/sparse`.

    The part after the stroke is there only in models that have both dense and sparse MLPs.
    """
    attention, mlp = _attention_kinds(text, num_layers), _mlp_kinds(text, num_layers)
    if len(set(mlp)) < 2:
        return attention
    return [f"{kind}/{width}" for kind, width in zip(attention, mlp, strict=True)]


def _attention_kinds(text: Any, num_layers: int) -> list[str]:
    """By the list that the config has; a model without one has one kind, sliding when it has a window."""
    for name in _ATTENTION_LISTS:
        kinds = getattr(text, name, None)
        if isinstance(kinds, list | tuple) and len(kinds) == num_layers and all(isinstance(x, str) for x in kinds):
            return list(kinds)
    window = getattr(text, "sliding_window", None)
    return [("full" if window is None else "sliding") + "_attention"] * num_layers


def _mlp_kinds(text: Any, num_layers: int) -> list[str]:
    """`dense` or `sparse` of each layer, by whichever field says it; all alike when none does."""
    listed = getattr(text, "mlp_layer_types", None)
    if isinstance(listed, list | tuple) and len(listed) == num_layers:
        return list(listed)
    sparse = _sparse_layers(text, num_layers)
    return ["sparse" if layer in sparse else "dense" for layer in range(num_layers)]


def _sparse_layers(text: Any, num_layers: int) -> Sequence[int]:
    listed = getattr(text, "moe_layers", None)
    if isinstance(listed, list | tuple):
        return listed
    for name in _DENSE_PREFIXES:
        count = getattr(text, name, None)
        if isinstance(count, int):
            return range(count, num_layers)
    period, offset = (getattr(text, f"expert_layer_{part}", None) for part in ("period", "offset"))
    if isinstance(period, int) and isinstance(offset, int):
        return range(offset, num_layers, period)
    step = getattr(text, "decoder_sparse_step", None)
    if isinstance(step, int) and step > 0:
        dense = getattr(text, "mlp_only_layers", None) or []
        return [i for i in range(num_layers) if (i + 1) % step == 0 and i not in dense]
    start, end, interval = (
        getattr(text, f"moe_layer_{part}", None) for part in ("start_index", "end_index", "interval")
    )
    if isinstance(start, int) and isinstance(end, int) and isinstance(interval, int):
        return [i for i in range(start, end + 1) if (i + 1) % interval == 0]
    return ()
