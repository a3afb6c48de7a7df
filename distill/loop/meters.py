"""What the loop counts: memory, and time spent in steps."""

import contextlib
import time
from collections.abc import Iterator

import psutil
import torch

from compress.base.machine import peak_resident_bytes, restart_peak_resident


def step_seed(seed: int, step: int, process: int) -> int:
    """Seed of dropout in one step of one process: arithmetic, so that nothing of it must be saved."""
    return (seed * 1_000_003 + step * 4099 + process) % 2**63


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
