"""Reading the next batch while a step computes."""

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def read_ahead(reads: Iterable[Callable[[], T]]) -> Generator[T, None, None]:
    """What each of `reads` returns, in order; a thread reads one ahead of what was asked for.

    An error in a read is raised where its result would have come. Close the iterator (`contextlib.closing`) to wait
    for the read in progress and end the thread.
    """
    with ThreadPoolExecutor(1, "read-ahead") as reader:
        pending: Future[T] | None = None
        for read in reads:
            following = reader.submit(read)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
