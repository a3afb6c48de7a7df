"""Weights outside the layers that are nevertheless of layers: tables with a part for each, and prediction heads."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from compress.errors import InputError

PER_LAYER_WEIGHTS: Mapping[str, int] = {
    "embed_tokens_per_layer.weight": 1,
    "per_layer_model_projection.weight": 0,
}
"""Tensors made of as many equal blocks as there are layers, and the dimension along which those lie (gemma3n, gemma4:
[vocabulary, layers * width] and [layers * width, hidden])."""

_PREDICTION_HEAD = re.compile(r"(?:.*\.)?mtp(?:_\w+)?\..*")


def is_prediction_head(name: str) -> bool:
    """Whether a tensor belongs to a multi-token prediction head that stands beside the layers (`mtp.`, qwen3_next)."""
    return _PREDICTION_HEAD.fullmatch(name) is not None


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The kept ones of `total` blocks of `block_bytes`, in each of `rows` rows of stored bytes."""

    rows: int
    total: int
    block_bytes: int
    kept: tuple[int, ...]
    shape: tuple[int, ...]
    """Of the tensor that the kept blocks make."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the kept blocks."""
        return self.rows * len(self.kept) * self.block_bytes

    @property
    def _by_row(self) -> bool:
        """Many short rows are read whole and picked from; a single long one is read block by block."""
        return self.rows > 1

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Parts of the stored bytes to read, as (first, how many)."""
        if self._by_row:
            yield 0, self.rows * self.total * self.block_bytes
        else:
            yield from ((block * self.block_bytes, self.block_bytes) for block in self.kept)

    def whole_rows(self, buffer_bytes: int) -> int:
        """How much to read at once into a buffer."""
        row_bytes = self.total * self.block_bytes
        return max(1, buffer_bytes // row_bytes) * row_bytes if self._by_row else buffer_bytes

    def pick(self, read: memoryview) -> memoryview:
        """The kept blocks of what was read."""
        if not self._by_row:
            return read
        rows = np.frombuffer(read, np.uint8).reshape(-1, self.total, self.block_bytes)
        return memoryview(rows[:, list(self.kept)].tobytes())


def layer_blocks(
    name: str, shape: Sequence[int], num_bytes: int, kept: Sequence[int], num_layers: int
) -> Blocks | None:
    """The kept layers' blocks of a tensor that has one for each layer; None when it has none.

    Raises:
        InputError: it should, and its size is no multiple of the number of layers.
    """
    dim = next((dim for tail, dim in PER_LAYER_WEIGHTS.items() if f".{name}".endswith(f".{tail}")), None)
    if dim is None or len(kept) == num_layers:
        return None
    if dim >= len(shape) or shape[dim] % num_layers:
        raise InputError(f"The tensor {name} of shape {tuple(shape)} has no part for each of {num_layers} layers.")
    width = shape[dim] // num_layers * len(kept)
    rows = math.prod(shape[:dim])
    return Blocks(
        rows=rows,
        total=num_layers,
        block_bytes=num_bytes // (rows * num_layers),
        kept=tuple(kept),
        shape=(*shape[:dim], width, *shape[dim + 1 :]),
    )
