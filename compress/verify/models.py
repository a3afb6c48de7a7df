"""The models of a run: whole, strict to load, with finite weights only."""

from pathlib import Path

import torch

from compress.model.files import check_weight_files
from compress.model.load import load_model
from compress.weights.finite import require_finite


def check_model(folder: Path) -> str:
    """Load a model strictly (shapes only) and look through its weights; memory is one tensor.

    Raises:
        InputError: a key is missing, unexpected or of another shape, or a weight is not finite; the message names it.
    """
    load_model(folder, dtype=torch.float32, device="meta", device_map="meta")
    return f"loads strictly; {require_finite(check_weight_files(folder))} stored weights, all finite"
