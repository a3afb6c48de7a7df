"""Floating-point operations of training, and how fast known devices do them."""

import functools
import time
from typing import Any, NamedTuple

import torch

from compress.model.costs import model_costs

_PEAK_BF16_FLOPS = {
    "B200": 2.25e15,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
    "L4": 121e12,
    "4090": 165e12,
    "3090": 71e12,
}
"""Dense bf16 FLOP/s from NVIDIA's data sheets, by a part of the device's name; the first match counts."""


def training_flops_per_token(student: Any, teacher: Any | None, seq_len: int) -> float:
    """FLOPs a training token costs: one forward pass of the teacher, one and two backward ones of the student.

    `student` and `teacher` are model configs. With C the forward FLOPs of `Costs.prefill_flops`: C_t + 3 C_s, about
    2 P_t + 6 P_s for P active parameters. Recomputation by gradient checkpointing is not counted.
    """
    flops = 3 * model_costs(student).prefill_flops(seq_len)
    return flops if teacher is None else flops + model_costs(teacher).prefill_flops(seq_len)


class PeakFlops(NamedTuple):
    """The most FLOP/s a device can do."""

    flops_per_s: float
    source: str
    """`data sheet`, or `measured` at start-up."""


def peak_flops(device: torch.device, precision: str) -> PeakFlops:
    """The device's dense FLOP/s: of its data sheet in bf16 where that is known, else of a matrix product, measured."""
    if device.type == "cuda" and precision == "bf16":
        name = torch.cuda.get_device_name(device)
        for part, flops in _PEAK_BF16_FLOPS.items():
            if part in name:
                return PeakFlops(flops, "data sheet")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return PeakFlops(_product_rate(device, dtype, torch.get_float32_matmul_precision()), "measured")


@functools.cache
def _product_rate(device: torch.device, dtype: torch.dtype, fp32_precision: str) -> float:
    """FLOP/s of the product of [512, 1024] and [1024, 2048], like that of a chunk of tokens with part of a head.

    The best of seven after one to warm up (about 0.2 s on a few CPU cores). `fp32_precision` is the setting of torch
    that it holds for.
    """
    rows, inner, columns = 512, 1024, 2048
    left = torch.full((rows, inner), 0.5, device=device, dtype=dtype)
    right = torch.full((columns, inner), 0.5, device=device, dtype=dtype)
    out = torch.empty(rows, columns, device=device, dtype=dtype)
    seconds = []
    for _ in range(8):
        started = time.perf_counter()
        torch.mm(left, right.t(), out=out)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * rows * inner * columns / min(seconds[1:])
