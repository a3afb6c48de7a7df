"""Importance of a block from its weights: magnitude, and first-order Taylor. Cheap baselines."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from compress.base.progress import Bar
from compress.inference.likelihood import text_loss
from compress.inference.readout import Readout
from compress.model.parts import decoder_layers


def magnitude(files: Iterable[Path], layer_prefixes: Sequence[str], num_layers: int, bar: Bar) -> list[float]:
    """Sum of |w| over the matrices of each block (Kim et al., arXiv:2402.02834, section 3), in float64.

    Read from the safetensors files, a tensor at a time: the model is never in memory.
    """
    from safetensors import safe_open

    in_layer = re.compile(rf"(?:{'|'.join(map(re.escape, layer_prefixes))})\.(\d+)\..+")
    sums = [0.0] * num_layers
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                match = in_layer.fullmatch(name)
                if match is None or int(match[1]) >= num_layers:
                    continue
                tensor = file.get_tensor(name)
                if tensor.ndim >= 2:
                    sums[int(match[1])] += float(tensor.abs().sum(dtype=torch.float64))
        bar.advance()
    return sums


def taylor(readout: Readout, batches: Iterable[Tensor], num_predicted: int, bar: Bar) -> list[float]:
    """Sum of |w dL/dw| over the matrices of each block (Kim et al., arXiv:2402.02834, section 3).

    L is the mean next-token loss over all of the text, so the score does not depend on the batches but for rounding.
    Takes one more copy of the blocks' weights, for the gradient.
    """
    _, layers = decoder_layers(readout.model)
    readout.model.requires_grad_(False)
    weights = [[p for p in layer.parameters() if p.ndim >= 2 and p.is_floating_point()] for layer in layers]
    for weight in (w for found in weights for w in found):
        weight.requires_grad_(True)
    for ids in batches:
        torch.autograd.backward(text_loss(readout, ids.to(readout.device)) / num_predicted)
        bar.advance(ids.numel())
    return [sum(_first_order(weight) for weight in found) for found in weights]


def _first_order(weight: Tensor) -> float:
    """Sum of |w g|; 0 for a weight the text never reached (an expert no token went to)."""
    if weight.grad is None:
        return 0.0
    return float((weight.detach().float() * weight.grad.float()).abs().double().sum())
