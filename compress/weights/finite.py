"""Looking through stored weights for what is no number."""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open

from compress.base.errors import InputError

_SCAN_ELEMENTS = 2**24


def require_finite(files: Iterable[Path]) -> int:
    """How many numbers there are in safetensors files, all of them finite; memory is one tensor.

    Raises:
        InputError: one is not; the message names the file and the tensor.
    """
    count = 0
    for path in files:
        with safe_open(path, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 - not a dict
                tensor = shard.get_tensor(name)
                count += tensor.numel()
                if not _finite(tensor):
                    raise InputError(f"{path}: {name} holds values that are not finite.")
    return count


def _finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    flat = tensor.flatten()
    parts = (flat[start : start + _SCAN_ELEMENTS] for start in range(0, flat.numel(), _SCAN_ELEMENTS))
    return all(bool(part.float().isfinite().all()) for part in parts)
