"""The models of a run: whole, strict to load, with finite weights only."""

from pathlib import Path

import torch
from safetensors import safe_open

from compress.base.errors import InputError
from compress.model.files import check_weight_files
from compress.model.load import load_model

_SCAN_ELEMENTS = 2**24


def check_model(folder: Path) -> str:
    """Load a model strictly (shapes only) and look through its weights; memory is one tensor.

    Raises:
        InputError: a key is missing, unexpected or of another shape, or a weight is not finite; the message names it.
    """
    load_model(folder, dtype=torch.float32, device="meta", device_map="meta")
    count = 0
    for path in check_weight_files(folder):
        with safe_open(path, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 - not a dict
                tensor = shard.get_tensor(name)
                count += tensor.numel()
                if not _finite(tensor):
                    raise InputError(f"{path}: {name} holds values that are not finite.")
    return f"loads strictly; {count} stored weights, all finite"


def _finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    flat = tensor.flatten()
    parts = (flat[start : start + _SCAN_ELEMENTS] for start in range(0, flat.numel(), _SCAN_ELEMENTS))
    return all(bool(part.float().isfinite().all()) for part in parts)
