"""Forward passes over trees of tokens on prefixes that are computed once and kept as keys and values."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from compress.inference.planning import Job
from compress.inference.readout import Checkpoint
from compress.inference.tree import Tree, batch_trees, build_tree, tree_mask

KeyValues = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, [B, heads, tokens, head dim]."""


class _Lent(DynamicLayer):  # type: ignore[misc]
    """Keys and values [1, heads, base, head dim] that every row of a batch sees; what the rows add is not kept."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        pairs = ((self.keys, key_states), (self.values, value_states))
        keys, values = (torch.cat([kept.expand(len(new), -1, -1, -1), new], dim=-2) for kept, new in pairs)
        return keys, values


class TreeModel:
    """A checkpoint's hidden states for trees of tokens; holds the prefixes of the job under way and no others."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._held: list[tuple[bytes, KeyValues]] = []

    def states(self, rows: Sequence[Tree], job: Job) -> Tensor:
        """Last hidden states [B, S, D] of `rows`, which stand on the job's prefix."""
        kept = self._prefix(job)
        if kept is None and all(len(row.paths) == 1 for row in rows):
            return self._checkpoint.states(batch_trees(rows, 0)[0].to(self._checkpoint.device))
        cache = None if kept is None else DynamicCache()
        if cache is not None:
            cache.layers = [_Lent(keys, values) for keys, values in kept or ()]
        return self._forward(rows, job.base, cache)

    def states_and_cache(self, rows: Sequence[Tree], job: Job) -> tuple[Tensor, KeyValues]:
        """`states`, and the keys and values [B, heads, base + S, head dim] of the prefix and the rows."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self._prefix(job) or ()):
            cache.update(keys.expand(len(rows), -1, -1, -1), values.expand(len(rows), -1, -1, -1), layer)
        states = self._forward(rows, job.base, cache)
        return states, _key_values(cache)

    def forget(self) -> None:
        """Free the prefixes."""
        self._held.clear()

    def _prefix(self, job: Job) -> KeyValues | None:
        """Keys and values of the job's prefix: each piece encoded on the one before, unless it still is there."""
        names = [job.prefix[:cut].tobytes() for cut in job.cuts]
        known = 0
        while known < min(len(names), len(self._held)) and self._held[known][0] == names[known]:
            known += 1
        del self._held[known:]
        for number in range(known, len(names)):
            base = job.cuts[number - 1] if number else 0
            cache = DynamicCache()
            if number:
                for layer, (keys, values) in enumerate(self._held[number - 1][1]):
                    cache.update(keys, values, layer)
            self._forward([build_tree([job.prefix[: job.cuts[number]]], base)], base, cache)
            self._held.append((names[number], _key_values(cache)))
        return self._held[-1][1] if names else None

    def _forward(self, rows: Sequence[Tree], base: int, cache: Any) -> Tensor:
        checkpoint = self._checkpoint
        tokens, depths, ends = (table.to(checkpoint.device) for table in batch_trees(rows, base))
        plain = base == 0 and all(len(row.paths) == 1 for row in rows)
        states: Tensor = checkpoint.model.base_model(
            input_ids=tokens,
            position_ids=None if plain else depths,
            attention_mask=None if plain else attention_mask(checkpoint.model, tree_mask(ends, base)),
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        return states


def attention_mask(model: Any, visible: Tensor) -> Tensor:
    """A boolean mask as the model's attention takes it: eager attention adds the mask to its scores.

    So does SDPA on the CPU, which would turn a boolean mask into one that can be added in each layer anew.
    """
    if model.config._attn_implementation != "eager" and visible.device.type != "cpu":
        return visible
    hidden = torch.finfo(model.dtype).min
    return torch.zeros(visible.shape, dtype=model.dtype, device=visible.device).masked_fill(~visible, hidden)


def _key_values(cache: Any) -> KeyValues:
    return [(layer.keys, layer.values) for layer in cache.layers]
