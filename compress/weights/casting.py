"""Numbers on their way from file to file: are they finite, and what are they in another dtype."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from compress.base.errors import InputError
from compress.weights.headers import FLOATS, ITEM_BYTES, StoredTensor
from compress.weights.rows import Then
from compress.weights.shards import Rows, StudentTensor
from compress.weights.special import layer_blocks

_NAMES = ("dtype", "torch_dtype")
"""Fields of config.json with a dtype."""
_STORED = {torch_name: name for name, torch_name in FLOATS.items()}
_INFINITY = {"F64": 0x7FF << 52, "F32": 0xFF << 23, "F16": 0x1F << 10, "BF16": 0xFF << 7}
"""Bits of +infinity. As integers, NaNs are larger, finite numbers smaller; the sign is the highest bit."""


def with_dtype(content: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """A config.json's content that names the dtype (torch's name), in its sections too where they name one."""
    named = [key for key in _NAMES if key in content] or [_NAMES[0]]
    sections = {
        name: part | {key: dtype for key in _NAMES if key in part}
        for name, part in content.items()
        if isinstance(part, dict)
    }
    return {**content, **sections, **dict.fromkeys(named, dtype)}


def all_finite(data: Rows, dtype: str) -> bool:
    """Whether numbers stored as `dtype` (safetensors' name) hold neither NaN nor infinity; true for integers.

    Read as signed integers, the positive numbers that are not finite are those from +infinity on; as unsigned ones, the
    negative from -infinity on. Two maxima find both, faster than memory is read, and need no bfloat16.
    """
    if dtype not in _INFINITY or not len(data):
        return True
    size = ITEM_BYTES[dtype]
    signed, unsigned = (np.frombuffer(data, dtype=f"<{kind}{size}") for kind in "iu")
    infinity, sign = _INFINITY[dtype], 1 << (8 * size - 1)
    return int(signed.max()) < infinity and int(unsigned.max()) < infinity + sign


def require_finite(data: Rows, tensor: StoredTensor) -> None:
    """Raise an InputError that names file and tensor when one of its numbers is not finite."""
    if not all_finite(data, tensor.dtype):
        raise InputError(
            f"{tensor.path}: the tensor {tensor.name} holds NaN or infinity. The file is damaged, or the training that "
            "made it diverged: download it again, or use an earlier checkpoint."
        )


def student_tensors(
    named: Sequence[tuple[str, StoredTensor]], cast: str | None, kept: Sequence[int], num_layers: int
) -> list[StudentTensor]:
    """The student's tensors, under their names; with `cast`, those of the teacher's main dtype become that dtype.

    What the teacher keeps in another one, it keeps so on purpose. Of tensors that hold a part for each of `num_layers`
    layers, those of the `kept` ones stay.
    """
    main = main_dtype([tensor for _, tensor in named])
    wanted = main if cast is None else _STORED[cast]

    def made(name: str, tensor: StoredTensor) -> StudentTensor:
        dtype = wanted if wanted is not None and tensor.dtype == main else tensor.dtype
        rounding = _Cast(tensor, dtype) if dtype != tensor.dtype else None
        blocks = layer_blocks(tensor.name, tensor.shape, tensor.num_bytes, kept, num_layers)
        if blocks is not None:
            change = Then(blocks, rounding) if rounding else blocks
            return StudentTensor(name, tensor, dtype, blocks.shape, change, blocks.row_bytes)
        if rounding is not None:
            return StudentTensor(name, tensor, dtype, tensor.shape, rounding, ITEM_BYTES[tensor.dtype])
        return StudentTensor.same(name, tensor)

    return [made(name, tensor) for name, tensor in named]


def main_dtype(tensors: Iterable[StoredTensor]) -> str | None:
    """The float dtype (safetensors' name) that most bytes have; None without one."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.dtype in FLOATS:
            sizes[tensor.dtype] += tensor.num_bytes
    return max(sizes, key=lambda dtype: sizes[dtype], default=None)


@dataclasses.dataclass(frozen=True)
class _Cast:
    """Rounds numbers of a tensor to the nearest of another dtype, ties to even, as torch does."""

    tensor: StoredTensor
    dtype: str

    def __call__(self, data: memoryview) -> Rows:
        """The numbers in the new dtype.

        Raises:
            InputError: a finite number is infinite in it.
        """
        import torch

        before = torch.frombuffer(data, dtype=getattr(torch, FLOATS[self.tensor.dtype]))
        after = before.to(getattr(torch, FLOATS[self.dtype])).view(torch.uint8).numpy().data
        if not all_finite(after, self.dtype):
            raise InputError(
                f"{self.tensor.path}: the tensor {self.tensor.name} holds numbers too large for {FLOATS[self.dtype]} "
                f"(the largest is {before.abs().max().item():.4g}). Cast to a dtype with a longer range, or leave the "
                "cast out."
            )
        return after
