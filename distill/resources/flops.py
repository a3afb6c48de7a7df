"""Floating-point operations of training, and how fast known devices do them."""

import copy
import functools
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from compress.model.costs import costs_of, model_costs, multiplied
from compress.model.parts import decoder_layers, empty_model

_SIDE = 8192
_PEAK_BF16_FLOPS = {
    r"GB200": 2.5e15,
    r"B200": 2.25e15,
    r"H200 NVL": 836e12,
    r"GH200|H200": 989e12,
    r"H100 NVL": 835e12,
    r"H100 PCIe": 756e12,
    r"H100": 989e12,
    r"A100": 312e12,
    r"L40S": 362e12,
    r"L40": 181e12,
    r"L4": 121e12,
    r"A10": 125e12,
    r"RTX 4090": 165e12,
    r"RTX 3090": 71e12,
}
"""Dense bf16 FLOP/s with fp32 sums from NVIDIA's data sheets, by whole words of the device's name; the first match
counts. What is not here is measured."""


def training_flops_per_token(student: Any, teacher: Any | None, seq_len: int, others: Sequence[Any] = ()) -> float:
    """FLOPs a training token costs: one forward pass of the teacher and of each of the `others` that teach beside it,
    one and two backward ones of the student.

    `student`, `teacher` and `others` are model configs; or the student is a model on the meta device, of which the
    parameters that require gradients are trained (it can only be counted afterwards). With C the forward FLOPs of
    `Costs.prefill_flops`: C_t + 3 C_s, about 2 P_t + 6 P_s for P active parameters. What is frozen costs the product
    that carries the gradient on, and that only from the lowest trained block up: 4 P. Recomputation by gradient
    checkpointing is not counted, nor what DoRA needs for lengths of rows.
    """
    model = student if isinstance(student, nn.Module) else empty_model(copy.deepcopy(student))
    costs = costs_of(model)
    forward = costs.prefill_flops(seq_len)
    return forward + _backward_flops(model, forward, costs.weight_flops) + _forward(seq_len, teacher, *others)


def _backward_flops(model: nn.Module, forward: float, of_weights: int) -> float:
    """Of a token: attention twice and each weight once for what came in, and once more for each trained weight."""
    stack, layers = decoder_layers(model)
    lowest = _lowest_trained(model)
    below = tuple(f"{stack}.{block}." for block in range(lowest))
    weights = sum(
        2 * count * ((not name.startswith(below)) + parameter.requires_grad)
        for name, parameter, count in multiplied(model)
    )
    return weights + 2 * (forward - of_weights) * (len(layers) - lowest) / len(layers)


def _lowest_trained(model: nn.Module) -> int:
    """The block that the backward pass ends in: 0 where what lies below the blocks is trained as well."""
    layers = decoder_layers(model)[1]
    if model.get_input_embeddings().weight.requires_grad:  # type: ignore[operator]
        return 0
    trained = (block for block, layer in enumerate(layers) if any(p.requires_grad for p in layer.parameters()))
    return next(trained, len(layers))


def measuring_flops_per_token(student: Any, teacher: Any | None, seq_len: int, others: Sequence[Any] = ()) -> float:
    """FLOPs a held-out token costs: a forward pass of each model. See `training_flops_per_token`."""
    return _forward(seq_len, student, teacher, *others)


def _forward(seq_len: int, *models: Any | None) -> float:
    return sum(model_costs(model).prefill_flops(seq_len) for model in models if model is not None)


class PeakFlops(NamedTuple):
    """The most FLOP/s a device can do."""

    flops_per_s: float
    source: str
    """`data sheet`, or `measured` at start-up."""


def peak_flops(device: torch.device, precision: str) -> PeakFlops:
    """The device's dense FLOP/s: of its data sheet in bf16 where that is known, else of a matrix product, measured."""
    if device.type == "cuda" and precision == "bf16":
        name = torch.cuda.get_device_name(device)
        for words, flops in _PEAK_BF16_FLOPS.items():
            if re.search(rf"\b({words})\b(?! (D|Laptop|Max-Q))", name):
                return PeakFlops(flops, "data sheet")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return PeakFlops(_product_rate(device, dtype, torch.get_float32_matmul_precision()), "measured")


def at_least(peak: PeakFlops, flops_per_s: float, device: torch.device, precision: str) -> PeakFlops:
    """A peak that was measured while the machine was busy, measured again where a run exceeds it; at least what the
    run does."""
    if flops_per_s <= peak.flops_per_s:
        return peak
    if peak.source == "measured":
        _product_rate.cache_clear()
        peak = peak_flops(device, precision)
    return peak._replace(flops_per_s=max(peak.flops_per_s, flops_per_s))


@functools.cache
def _product_rate(device: torch.device, dtype: torch.dtype, fp32_precision: str) -> float:
    """FLOP/s of a matrix product, the best of seven after one to warm up.

    On CPUs [512, 1024] times [1024, 2048], like a chunk of tokens with part of a head (about 0.2 s on a few cores); on
    accelerators, which are done with that before the next is asked for, a square of 8192, of random values as constant
    ones cost less power. `fp32_precision` is the setting of torch that it holds for.
    """
    rows, inner, columns = (512, 1024, 2048) if device.type == "cpu" else (_SIDE, _SIDE, _SIDE)
    draw = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(n, inner, device=device, generator=draw).to(dtype) for n in (rows, columns))
    out = torch.empty(rows, columns, device=device, dtype=dtype)
    seconds = []
    for _ in range(8):
        started = time.perf_counter()
        torch.mm(left, right.t(), out=out)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * rows * inner * columns / min(seconds[1:])
