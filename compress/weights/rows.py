"""Some of a tensor's rows, picked from its bytes as they come."""

import dataclasses
import math
from collections.abc import Sequence

from compress.weights.headers import ITEM_BYTES, StoredTensor
from compress.weights.shards import Change, Rows, StudentTensor


def with_rows(tensor: StudentTensor, kept: Sequence[int]) -> StudentTensor:
    """The `kept` rows (first dimension, increasing) of a student's tensor that has all of a stored one's, cast or not.
    It serves one copy."""
    stored, picked = tensor.source, _Picked(tensor.source, kept)
    change = picked if tensor.change is None else Then(picked, tensor.change)
    return StudentTensor(
        tensor.name, stored, tensor.dtype, (len(kept), *stored.shape[1:]), change, ITEM_BYTES[stored.dtype]
    )


@dataclasses.dataclass(frozen=True)
class Then:
    """Two changes, one after the other."""

    first: Change
    second: Change

    def __call__(self, data: memoryview) -> Rows:
        """Both; the second is not asked where the first leaves nothing."""
        found = self.first(data)
        return self.second(memoryview(found)) if len(found) else found


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
        return bytearray().join(found)
