"""Which trainings can be done side by side on one forward pass of the teacher."""

from collections.abc import Sequence

from compress.base.config import to_dict
from compress.base.disk import sha256_json
from compress.distill.config import DistillConfig

OWN = frozenset(
    {
        *("alpha", "temperature", "divergence", "self_correct", "weights", "hidden", "similarity", "balance"),
        *("optimizer", "lr", "min_lr_fraction", "warmup_fraction", "schedule", "decay_fraction", "clip_norm"),
        *("weight_decay", "betas", "max_skipped_steps", "spike_sigma", "spike_window", "lora", "train", "save_dtype"),
        *("gradient_checkpointing", "chunk_tokens", "fused_loss", "heldout_sequences", "heldout_every"),
        *("checkpoint_every", "keep_checkpoints", "async_checkpoints", "log_every"),
    }
)
"""Options in which students may differ that learn from the same rows, in the same pieces, at the same steps."""


def alike(trainings: Sequence[tuple[DistillConfig, str]]) -> list[list[int]]:
    """Numbers of the trainings in groups that can be done side by side, in order.

    Each is its options and a word that is one for those with the same teacher, text and cache.
    """
    groups: dict[str, list[int]] = {}
    for number, (config, inputs) in enumerate(trainings):
        shared = {name: value for name, value in to_dict(config).items() if name not in OWN}
        alone = bool(config.trackers) or (config.scored is not None and config.scored.by == "student_disagreement")
        key = sha256_json({"options": shared, "inputs": inputs, "alone": number if alone else None})
        groups.setdefault(key, []).append(number)
    return list(groups.values())
