"""What the loop counts: skipped steps, on the device, memory, and time spent in steps."""

import contextlib
import time
from collections.abc import Iterator

import psutil
import torch
from torch import Tensor

from compress.errors import CompressError
from compress.runtime import peak_resident_bytes, restart_peak_resident


def step_seed(seed: int, step: int, process: int) -> int:
    """Seed of dropout in one step of one process: arithmetic, so that nothing of it must be saved."""
    return (seed * 1_000_003 + step * 4099 + process) % 2**63


class SkipCount:
    """Counts steps whose loss or gradient is not finite, on the device; such a step changes no weight and no moment."""

    def __init__(self, total: int, in_a_row: int, device: torch.device) -> None:
        self._counts = torch.tensor([total, in_a_row, in_a_row], dtype=torch.int64, device=device)

    def note(self, losses: Tensor, grad_norm: Tensor) -> Tensor:
        """Count one step; returns the optimizer's `skip`: 1.0 if the step must be skipped, else 0.0."""
        bad = ~(torch.isfinite(losses).all() & torch.isfinite(grad_norm))
        in_a_row = (self._counts[1] + 1) * bad
        self._counts = torch.stack([self._counts[0] + bad, in_a_row, torch.maximum(self._counts[2], in_a_row)])
        return bad.float()

    def read(self) -> tuple[int, int]:
        """Skipped steps in all, and in a row up to now."""
        total, in_a_row, _ = self._counts.tolist()
        return total, in_a_row

    def give_up_after(self, limit: int) -> None:
        """Raise a `CompressError` if `limit` steps in a row were skipped at any time."""
        total, _, longest = self._counts.tolist()
        if longest >= limit:
            raise CompressError(
                f"{longest} steps in a row had a loss or gradient that is not finite ({total} in all). The weights are "
                "those before them. Lower lr or clip_norm, or use precision fp32; max_skipped_steps sets the limit."
            )


class MemoryMeter:
    """Peak bytes that training adds to what the process held when the meter was made.

    On a CPU resident memory counts, of which Linux alone keeps a peak that can be reset; else what torch allocated.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda, self._counts = device.type == "cuda", False
        self.baseline: int = torch.cuda.memory_allocated() if self._cuda else psutil.Process().memory_info().rss

    def restart(self) -> None:
        """Forget the peak so far."""
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        self._counts = self._cuda or restart_peak_resident()

    def peak(self) -> int | None:
        """The peak since `restart`, above the baseline; None where the system does not tell."""
        if not self._counts:
            return None
        peak = torch.cuda.max_memory_allocated() if self._cuda else peak_resident_bytes()
        return peak - self.baseline


class Clock:
    """Seconds spent in steps, without held-out losses and checkpoints, and the tokens a second since the last look."""

    def __init__(self, seconds: float, tokens: int) -> None:
        self._before, self._started = seconds, time.perf_counter()
        self._seen = (seconds, tokens)

    def seconds(self) -> float:
        """Time in steps so far, over all resumed runs."""
        return self._before + time.perf_counter() - self._started

    def tokens_per_s(self, tokens: int) -> float:
        """Mean rate since the last call, given all tokens so far."""
        now, (then, seen) = self.seconds(), self._seen
        self._seen = (now, tokens)
        return (tokens - seen) / max(now - then, 1e-9)

    @contextlib.contextmanager
    def paused(self, device: torch.device) -> Iterator[None]:
        """Stop counting while the block runs, once the device has finished the steps before it."""
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        self._before = self.seconds()
        self._started = time.perf_counter()
        yield
        self._started = time.perf_counter()
