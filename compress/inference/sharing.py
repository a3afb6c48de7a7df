"""Whether a model may compute what sequences share once, or needs the plain forward pass for each."""

from typing import Any

import numpy as np
import torch

from compress.inference.planning import Job
from compress.inference.prefix_cache import TreeModel
from compress.inference.readout import Checkpoint
from compress.inference.tree import Ids, build_tree
from compress.model.lengths import WINDOWS, context_tokens

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
_LOW_PRECISION_TOLERANCE = 0.05  # rounding to bf16 alone gives 0.01 to 0.03 over 4 to 24 layers
_TRIAL_TOKENS = 32
"""More than the longest sequence of the trial has."""
_FULL = {"full_attention", "attention"}
_LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}


def why_plain(checkpoint: Checkpoint) -> tuple[str | None, float]:
    """The reason why prefixes and trees are not for this model, or None; and the error that a trial found, or nan.

    Its properties are asked first: attention that is not full, positions that depend on a batch's length, a kernel
    without masks. Then a trial compares hidden states of a tree on a prefix with those of each sequence alone.
    """
    reason = known_reason(checkpoint)
    if reason is not None:
        return reason, float("nan")
    try:
        error = trial(checkpoint)
    except Exception as failure:  # whatever code of a model that was not made for this raises
        return f"its code takes no tree of tokens ({type(failure).__name__})", float("nan")
    tolerance = _TOLERANCE.get(checkpoint.model.dtype, _LOW_PRECISION_TOLERANCE)
    return (None if error <= tolerance else f"a trial differed from the plain forward pass by {error:.1g}"), error


def known_reason(checkpoint: Checkpoint) -> str | None:
    """Why the model's properties rule sharing out, or None."""
    model = checkpoint.model
    config = model.config.get_text_config()
    kernel = model.config._attn_implementation
    limit = context_tokens(config)
    if limit is not None and limit < _TRIAL_TOKENS:
        return f"its context of {limit} tokens is too short for a trial"
    if checkpoint.head is None:
        return "its logits are not its hidden states times its head"
    if kernel not in ("sdpa", "eager"):
        return f"its attention kernel ({kernel}) takes no mask of ours"
    if other := sorted(set(getattr(config, "layer_types", None) or ()) - _FULL):
        return f"it has {' and '.join(other)} layers"
    if getattr(config, "use_sliding_window", True) and any(getattr(config, name, None) for name in WINDOWS):
        return "its attention has a window"
    if getattr(model, "_is_stateful", False):
        return "it keeps a state instead of keys and values"
    if getattr(config, "alibi", False):
        return "its positions are ALiBi's"
    if _rope_types(config) & _LENGTH_DEPENDENT_ROPE:
        return "its position encoding depends on the longest sequence of a batch"
    return None


def _rope_types(config: Any) -> set[str]:
    """The kinds of rotary scaling in a config, which has one table, or one for each kind of layer."""
    table = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    tables = [table, *(value for value in table.values() if isinstance(value, dict))]
    return {str(each.get("rope_type", each.get("type"))) for each in tables}


@torch.inference_mode()
def trial(checkpoint: Checkpoint) -> float:
    """Largest relative difference, over sequences, of hidden states in trees on a nested prefix from the plain ones."""
    sequences = _trial_sequences(checkpoint.vocab_size)
    model, base = TreeModel(checkpoint), 9
    job = Job(sequences[0][:base], (5, base), ((0, 1, 2), (3,)))
    rows = [build_tree([sequences[number] for number in row], base) for row in job.rows]
    found = [model.states(rows, job), model.states_and_cache(rows, job)[0]]
    error = 0.0
    for row, (tree, members) in enumerate(zip(rows, job.rows, strict=True)):
        for path, number in zip(tree.paths, members, strict=True):
            ids = torch.from_numpy(sequences[number])[None].to(checkpoint.device)
            expected = checkpoint.states(ids)[0, base:].double()
            for states in found:
                difference = states[row][torch.from_numpy(path).to(states.device)].double() - expected
                error = max(error, float(difference.norm() / expected.norm()))
    return error


def _trial_sequences(vocab_size: int) -> list[Ids]:
    """Four sequences, sorted: three that branch from one stem after 12 tokens, and one that leaves after 9."""
    rng = np.random.default_rng(0)
    stem = rng.integers(0, vocab_size, 12)
    heads = rng.permutation(vocab_size)[:3]
    branches = [
        np.concatenate([stem, [head], rng.integers(0, vocab_size, size)])
        for head, size in zip(heads, (3, 6, 1), strict=True)
    ]
    lone = np.concatenate([stem[:9], [(stem[9] + 1) % vocab_size], rng.integers(0, vocab_size, 20)])
    return [*sorted(branches, key=lambda ids: ids.tolist()), lone]
