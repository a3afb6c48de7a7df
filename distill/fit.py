"""Whether a run fits the device's memory, said before it starts, and what to change when it does not."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

from compress.base.errors import UsageError
from compress.base.machine import memory_of
from compress.base.processes import count
from compress.base.progress import say
from compress.base.units import format_bytes
from compress.distill.config import DistillConfig
from compress.distill.plan import DistillPlan

_HELD = ("weights", "gradients", "optimizer moments", "teacher", "gathered weights")

Planner = Callable[[DistillConfig], DistillPlan]


def check_fit(config: DistillConfig, planner: Planner, device: torch.device) -> DistillPlan:
    """The plan of a run, with a warning if it is more than the device has free.

    Activations are planned, not known, and memory may become free: only what is counted and exceeds all memory the
    device has is refused.

    Raises:
        UsageError: weights, gradients, optimizer and teacher alone are more than the device's memory.
    """
    plan = planner(config)
    free, _ = memory_of(device)
    check_held({name: plan.memory_bytes.get(name, 0) for name in _HELD}, device)
    if plan.total_bytes > free:
        say(
            f"Memory may not suffice: {plan.memory_text()}; {format_bytes(plan.total_bytes)} in all, and "
            f"{format_bytes(free)} of {device} are free. {advice(config, planner, free)}"
        )
    return plan


def check_held(held: Mapping[str, int], device: torch.device) -> None:
    """Refuse what a run holds all the time, in bytes by part, where the device has not as much memory.

    Raises:
        UsageError: weights, gradients, optimizer and teacher are more than the device's memory.
    """
    needed = sum(held.values())
    _, total = memory_of(device)
    if needed > total:
        raise UsageError(
            f"Weights, gradients, optimizer and teacher take {format_bytes(needed)} and {device} has "
            f"{format_bytes(total)}: use a smaller student or teacher, a device with more memory, or several devices "
            "with shard: both."
        )


def advice(config: DistillConfig, planner: Planner, free: int) -> str:
    """The first change, from the cheapest on, with which a run fits into `free` bytes, and what it saves."""
    before = planner(config)
    smallest = before
    for changes in _remedies(config, before.micro_batch_rows):
        plan = planner(dataclasses.replace(config, **changes))
        text = ", ".join(f"{name}: {str(value).lower()}" for name, value in changes.items())
        if plan.total_bytes <= free:
            return f"{text} would save {format_bytes(before.total_bytes - plan.total_bytes)} and fit (same result)."
        smallest = min(smallest, plan, key=lambda plan: plan.total_bytes)
    return f"The least it can do with is {format_bytes(smallest.total_bytes)}: one row at a time, recomputed."


def fitting(config: DistillConfig, planner: Planner, free: int) -> dict[str, Any] | None:
    """The first change, from the cheapest on (no change at all), with which a run fits into `free` bytes; None where
    none does."""
    choices: list[dict[str, Any]] = [{}, *_remedies(config, planner(config).micro_batch_rows)]
    return next((made for made in choices if planner(dataclasses.replace(config, **made)).total_bytes <= free), None)


def _remedies(config: DistillConfig, rows: int) -> list[dict[str, Any]]:
    """Fewer rows at once cost little, recomputation a third more time, split weights what the network is slow at."""
    fewer: list[dict[str, Any]] = []
    while rows > 1:
        rows //= 2
        fewer.append({"micro_batch_rows": rows})
    split = [{"shard": "both"}] if count() > 1 and config.optimizer == "adamw" and config.shard != "both" else []
    if config.gradient_checkpointing:
        return [*fewer, *split]
    recomputed = [{"gradient_checkpointing": True, **less} for less in ({}, *fewer)]
    return [*fewer, *recomputed, *split, *({**split[0], **changes} for changes in recomputed if split)]
