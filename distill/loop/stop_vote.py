"""Leaving the loop together: all processes stop at the same step, and no step waits for the vote."""

from typing import Any

import torch
from torch import Tensor

from compress.base.signals import StopRequest


class StopVote:
    """Whether any process was asked to stop.

    With several processes a step's answer is that of the vote cast one step before, whose sum has long come back to
    the host: reading it does not hold up the device.
    """

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self._earlier: Tensor | None = None
        self._arrived: torch.Event | None = None

    def agreed(self, asked: StopRequest) -> bool:
        """Cast this process's vote, and return what all agree on; every process calls it once a step."""
        if self._accelerator.num_processes == 1:
            return bool(asked)
        earlier, arrived = self._earlier, self._arrived
        self._cast(bool(asked))
        if arrived is not None:
            arrived.synchronize()
        return earlier is not None and bool(earlier)

    def _cast(self, asked: bool) -> None:
        device = self._accelerator.device
        vote = torch.full((), float(asked), device=device)
        self._earlier = self._accelerator.reduce(vote, reduction="sum").to("cpu", non_blocking=True)
        if device.type != "cpu":
            self._arrived = torch.Event(device)
            self._arrived.record()
