"""Some of a tensor's rows, picked from its bytes as they come."""

import math
from collections.abc import Callable, Sequence

from compress.weights.headers import ITEM_BYTES, StoredTensor
from compress.weights.shards import Rows, StudentTensor


def with_rows(name: str, tensor: StoredTensor, kept: Sequence[int]) -> StudentTensor:
    """The student's tensor `name` of the `kept` rows (first dimension, increasing) of a stored one, in its dtype. It
    serves one copy."""
    shape = (len(kept), *tensor.shape[1:])
    change = _Picked(tensor, kept)
    return StudentTensor(name, tensor, tensor.dtype, shape, change, ITEM_BYTES[tensor.dtype])


def then(tensor: StudentTensor, change: Callable[[memoryview], Rows], dtype: str) -> StudentTensor:
    """The same with another change after its own, which leaves numbers of `dtype`."""
    first = tensor.change
    assert first is not None
    both: Callable[[memoryview], Rows] = lambda data: change(memoryview(first(data)))  # noqa: E731
    return StudentTensor(tensor.name, tensor.source, dtype, tensor.shape, both, tensor.grain)


class _Picked:
    """Keeps the bytes of some rows of a tensor, which it is given in order, a row in parts or many at once."""

    def __init__(self, tensor: StoredTensor, kept: Sequence[int]) -> None:
        size = math.prod(tensor.shape[1:]) * ITEM_BYTES[tensor.dtype]
        self._runs: list[tuple[int, int]] = []
        for row in kept:
            if self._runs and self._runs[-1][1] == row * size:
                self._runs[-1] = (self._runs[-1][0], (row + 1) * size)
            else:
                self._runs.append((row * size, (row + 1) * size))
        self._next_run = self._seen = 0

    def __call__(self, data: memoryview) -> Rows:
        """What is kept of the next bytes."""
        begin, end = self._seen, self._seen + len(data)
        found = []
        while self._next_run < len(self._runs):
            first, last = self._runs[self._next_run]
            if first >= end:
                break
            found.append(data[max(first, begin) - begin : min(last, end) - begin])
            if last > end:
                break
            self._next_run += 1
        self._seen = end
        return b"".join(found)
