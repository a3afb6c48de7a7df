"""Switches of the whole process that hold while a model is trained, or run as in a training."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

from compress.base.errors import UsageError, reason_of
from compress.base.machine import fast_fp32_products, give_back_memory, keep_freed_memory
from compress.base.progress import say
from compress.distill.config import DistillConfig
from compress.distill.objective.kernels import cpu


@contextlib.contextmanager
def tuned(config: DistillConfig) -> Iterator[None]:
    """Set the CPU's switches while training runs on it; the note says which."""
    if not config.cpu_tuning or torch.accelerator.is_available():
        yield
        return
    with fast_fp32_products() as fast:
        kept = keep_freed_memory()
        compiled = config.fused_loss and cpu.available()
        products = "through oneDNN (measured exact)" if fast else "as torch makes them"
        say(
            f"CPU tuning: fp32 products {products}, freed memory {'kept by the process' if kept else 'as it was'} "
            f"(cpu_tuning: false turns both off), the loss's pass over the logits in "
            f"{'C++ (fused_loss: false turns it off)' if compiled else 'torch'}."
        )
        try:
            yield
        finally:
            give_back_memory()


@contextlib.contextmanager
def in_one_order(config: DistillConfig) -> Iterator[None]:
    """With `deterministic`, let torch take only kernels that add up in one order.

    Raises:
        UsageError: the model needs an operation that has no such kernel.
    """
    if not config.deterministic:
        yield
        return
    # Read by cuBLAS when it is first used: of its work spaces one whose sums do not depend on what else runs.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    switches: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), switches.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    switches.fill_uninitialized_memory = False  # what is never read need not be filled
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise UsageError(
            f"deterministic: true cannot be had with this model: {reason_of(error)}. Leave it out."
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0])
        switches.fill_uninitialized_memory = before[1]
