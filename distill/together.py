"""Which trainings can be done side by side on one forward pass of the teacher, and how many at once."""

from collections.abc import Sequence

from compress.base.config import to_dict
from compress.base.disk import sha256_json
from compress.distill.config import DistillConfig
from compress.distill.plan import DistillPlan

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

_PASSING = ("activations", "signals", "temporary", "data")


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


def together_bytes(plans: Sequence[DistillPlan], signals: int) -> int:
    """Memory of trainings side by side: each holds its own student all the time, they share the teacher, and one at a
    time has activations; the teacher's `signals` are kept for a round."""
    passing = [sum(size for name, size in plan.memory_bytes.items() if name in _PASSING) for plan in plans]
    teacher = max(plan.memory_bytes.get("teacher", 0) for plan in plans)
    own = [
        sum(size for name, size in plan.memory_bytes.items() if name not in (*_PASSING, "teacher")) for plan in plans
    ]
    return sum(own) + teacher + max(passing) + (signals if len(plans) > 1 else 0)


def that_fit(plans: Sequence[DistillPlan], signals: int, free: int) -> list[list[int]]:
    """Numbers of the plans, in order, in groups as large as fit into `free` bytes; one alone is a group in any case."""
    groups: list[list[int]] = []
    for number, plan in enumerate(plans):
        beside = [plans[other] for other in groups[-1]] if groups else []
        if beside and together_bytes([*beside, plan], signals) <= free:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups
