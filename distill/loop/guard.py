"""Steps that must not change the weights: those whose loss or gradient is not finite, and spikes of the loss."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from compress.base.errors import CompressError
from compress.base.progress import say
from compress.distill.config import DistillConfig
from compress.distill.objective.objective import Terms, loss_of

_ROWS_NAMED = 32


class Diverged(CompressError):
    """Too many steps in a row had to be skipped."""


class Skips(NamedTuple):
    """Skipped steps so far."""

    total: int
    in_a_row: int
    """Up to the last step."""
    longest: int
    """The longest run of them since the guard was made."""
    longest_end: int
    """Number of finished steps at the end of that run."""
    last: int
    """Number of finished steps after the last one that was skipped; 0 if none was since the guard was made."""


class StepGuard:
    """Decides on the device whether a step is skipped, and counts; nothing is read back until it is asked for.

    A step is skipped whole if its loss or gradient is not finite or, with `spike_sigma`, if its loss is more than that
    many standard deviations above the mean of the last `spike_window` steps that were not skipped. Until the window is
    full there are no spikes.
    """

    def __init__(self, config: DistillConfig, device: torch.device, *, total: int, in_a_row: int, recent: list[float]):
        self._config = config
        self._counts = torch.tensor([total, in_a_row, in_a_row, 0, 0], dtype=torch.int64, device=device)
        window = [math.nan] * config.spike_window + recent
        self._recent = torch.tensor(window[-config.spike_window :], dtype=torch.float64, device=device)

    def note(self, step: int, terms: Terms, grad_norm: Tensor) -> Tensor:
        """Count the 0-based `step` with the terms of its loss; returns 1.0 if it must be skipped, else 0.0."""
        loss = loss_of(terms)
        values = torch.stack([term.raw for term in terms.values()])
        bad = ~(torch.isfinite(values).all() & torch.isfinite(grad_norm))
        if self._config.spike_sigma is not None:
            limit = self._recent.mean() + self._config.spike_sigma * self._recent.std(correction=0)
            bad = bad | (loss > limit)  # a window that is not full has a NaN for its limit: no loss is above it
            self._recent = torch.where(bad, self._recent, torch.cat([self._recent[1:], loss[None]]))
        total, in_a_row, longest, longest_end, last = self._counts
        in_a_row = (in_a_row + 1) * bad
        finished = torch.full_like(total, step + 1)
        longest_end = torch.where(in_a_row > longest, finished, longest_end)
        last = torch.where(bad, finished, last)
        self._counts = torch.stack([total + bad, in_a_row, torch.maximum(longest, in_a_row), longest_end, last])
        return bad.float()

    def read(self) -> Skips:
        """The counts; waits for the device."""
        return Skips(*self._counts.tolist())

    def recent(self) -> list[float]:
        """The losses that the next step is measured against; empty without `spike_sigma`."""
        if self._config.spike_sigma is None:
            return []
        return [loss for loss in self._recent.tolist() if math.isfinite(loss)]


def skip_reason(spike_sigma: float | None) -> str:
    """What a skipped step may have been skipped for."""
    return "loss or gradient not finite" + ("" if spike_sigma is None else ", or a spike of the loss")


def tell_skips(skips: Skips, told: int, config: DistillConfig, rows_of: Callable[[int], list[int]]) -> None:
    """Tell the user of steps skipped beyond the `told` first ones; `rows_of` gives the row ids of a 0-based step.

    Raises:
        Diverged: `max_skipped_steps` steps in a row were skipped; the message has the ids of their rows.
    """
    reason = skip_reason(config.spike_sigma)
    if skips.longest >= config.max_skipped_steps and skips.longest_end:
        first = max(skips.longest_end - skips.longest, 0)
        rows = [row for step in range(first, skips.longest_end) for row in rows_of(step)]
        raise Diverged(
            f"{skips.longest} steps in a row were skipped ({skips.total} in all), steps {first + 1} to "
            f"{skips.longest_end}: {reason}. The weights are those before them. They read the rows {_listed(rows)} of "
            "the token store. Lower lr or clip_norm, or use precision fp32; max_skipped_steps sets the limit."
        )
    new = skips.total - told
    if new > 0:
        say(
            f"{new} step{'s' if new > 1 else ''} changed nothing: {reason} ({skips.total} in all). The last was step "
            f"{skips.last}, with the rows {_listed(rows_of(skips.last - 1))}."
        )


def _listed(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:_ROWS_NAMED])) + (" ..." if len(ids) > _ROWS_NAMED else "")
