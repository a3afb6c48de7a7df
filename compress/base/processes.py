"""The processes of one launch (`torchrun`, `accelerate launch`): which is the main one, and how they wait for it.

Launchers start the same command several times and set RANK and WORLD_SIZE. What is not parallel (preparing text,
pruning, writing reports) is done by the main process (rank 0) inside `on_main`; the others wait for what it returns.
All processes see the same files.
"""

import datetime
import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from compress.base.errors import CompressError
from compress.base.signals import check_interrupt

T = TypeVar("T")

_PATIENCE = datetime.timedelta(days=7)
_LOOK_EVERY_S = 0.005


class MainProcessFailed(CompressError):
    """What the other processes raise when the main one failed; the main one tells the user why."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("The main process failed.")
        self.exit_code = exit_code


class ProcessLost(CompressError):
    """Another process of this launch ended before the work was done."""


def count() -> int:
    """Number of processes in this launch."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes files and talks to the user."""
    return rank() == 0


def on_main(work: Callable[[], T]) -> T:
    """What `work` returns in the main process, which alone runs it; the others wait, for days if need be.

    Raises:
        MainProcessFailed: in the other processes, when the main one raised something.
        ProcessLost: another process ended before it came here.
    """
    if count() == 1:
        return work()
    if not is_main():
        result, exit_code = _broadcast(None)
        if exit_code is not None:
            raise MainProcessFailed(exit_code)
        return cast(T, result)
    try:
        result = work()
    except Exception as error:
        _broadcast((None, getattr(error, "exit_code", 1)))
        raise
    _broadcast((result, None))
    return result


def main_first(work: Callable[[], T]) -> T:
    """What `work` returns in this process; the main one runs it before the others, which find what it downloaded.

    Raises:
        MainProcessFailed, ProcessLost: see `on_main`.
    """
    made: list[T] = []
    on_main(lambda: made.append(work()))
    return made[0] if made else work()


def all_gather(value: T) -> list[T]:
    """Every process's `value`, by rank.

    Raises:
        ProcessLost: another process ended before it came here.
    """
    if count() == 1:
        return [value]
    import torch.distributed as dist

    values = [None] * count()
    with _met() as group:
        dist.all_gather_object(values, value, group=group)
    return cast(list[T], values)


def _broadcast(value: Any) -> Any:
    import torch.distributed as dist

    box = [value]
    with _met() as group:
        dist.broadcast_object_list(box, src=0, group=group, device=None)
    return box[0]


@contextmanager
def _met() -> Iterator[Any]:
    """The group, once all processes are here. A signal ends the waiting, as it cannot end that of a collective."""
    import torch.distributed as dist

    group = _group()
    try:
        arrival = dist.barrier(group=group, async_op=True)
        while not arrival.is_completed():
            check_interrupt()
            time.sleep(_LOOK_EVERY_S)
        arrival.wait()
        yield group
    except RuntimeError as error:
        raise ProcessLost(
            "Another process of this launch ended early; its own message, or the launcher's, says why. What is saved "
            "is kept: run the same command again to go on."
        ) from error


@functools.cache
def _group() -> Any:
    """A group on the CPU beside the one that training uses: it may wait for as long as preparing text takes."""
    import torch.distributed as dist

    join()
    return dist.new_group(backend="gloo", timeout=_PATIENCE)


def join() -> None:
    """Connect the processes and take this one's device, as accelerate does; nothing if there is only one."""
    if count() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.accelerator.is_available())


def leave() -> None:
    """End the connection, so that torch does not warn of a group that was left open."""
    import sys

    if count() > 1 and (torch := sys.modules.get("torch")) and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        _group.cache_clear()
