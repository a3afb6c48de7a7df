"""Weights outside the layers that are nevertheless of layers: tables with a part for each, and prediction heads."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from compress.base.errors import InputError

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


def is_per_layer(name: str) -> bool:
    """Whether a tensor outside the layers is made of a part for each."""
    return _dimension(name) is not None


def _dimension(name: str) -> int | None:
    """The dimension along which a tensor's parts lie."""
    return next((dim for tail, dim in PER_LAYER_WEIGHTS.items() if f".{name}".endswith(f".{tail}")), None)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The kept ones of `total` blocks of `block_bytes`, in each row of stored bytes."""

    total: int
    block_bytes: int
    kept: tuple[int, ...]
    shape: tuple[int, ...]
    """Of the tensor that the kept blocks make."""

    @property
    def row_bytes(self) -> int:
        """Bytes of all blocks of a row, from which the kept ones are picked together."""
        return self.total * self.block_bytes

    def __call__(self, rows: memoryview) -> memoryview:
        """The kept blocks of whole rows."""
        blocks = np.frombuffer(rows, np.uint8).reshape(-1, self.total, self.block_bytes)
        return np.ascontiguousarray(blocks[:, list(self.kept)]).reshape(-1).data


def layer_blocks(
    name: str, shape: Sequence[int], num_bytes: int, kept: Sequence[int], num_layers: int
) -> Blocks | None:
    """The kept layers' blocks of a tensor that has one for each layer; None when it has none.

    Raises:
        InputError: it should, and its size is no multiple of the number of layers.
    """
    dim = _dimension(name)
    if dim is None or len(kept) == num_layers:
        return None
    if dim >= len(shape) or shape[dim] % num_layers:
        raise InputError(f"The tensor {name} of shape {tuple(shape)} has no part for each of {num_layers} layers.")
    width = shape[dim] // num_layers * len(kept)
    rows = math.prod(shape[:dim])
    return Blocks(
        total=num_layers,
        block_bytes=num_bytes // (rows * num_layers),
        kept=tuple(kept),
        shape=(*shape[:dim], width, *shape[dim + 1 :]),
    )
