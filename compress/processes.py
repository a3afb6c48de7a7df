"""The processes of one launch (`torchrun`, `accelerate launch`): which is the main one, and how they wait for it.

Launchers start the same command several times and set RANK and WORLD_SIZE. What is not parallel (preparing text,
pruning, writing reports) is done by the main process (rank 0) inside `on_main`; the others wait for what it returns.
All processes see the same files.
"""

import datetime
import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

from compress.errors import CompressError

T = TypeVar("T")

_PATIENCE = datetime.timedelta(days=7)


class MainProcessFailed(CompressError):
    """What the other processes raise when the main one failed; the main one tells the user why."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("The main process failed.")
        self.exit_code = exit_code


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
    except BaseException as error:
        _broadcast((None, getattr(error, "exit_code", 1)))
        raise
    _broadcast((result, None))
    return result


def all_gather(value: T) -> list[T]:
    """Every process's `value`, by rank."""
    if count() == 1:
        return [value]
    import torch.distributed as dist

    group, values = _group(), [None] * count()
    dist.all_gather_object(values, value, group=group)
    return cast(list[T], values)


def _broadcast(value: Any) -> Any:
    import torch.distributed as dist

    group, box = _group(), [value]
    dist.broadcast_object_list(box, src=0, group=group, device=None)
    return box[0]


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
