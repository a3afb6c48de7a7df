"""Floating-point operations of training, and how fast known devices do them."""

from typing import Any

import torch

from compress.architecture import forward_flops_per_token

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

    `student` and `teacher` are model configs. With C the forward FLOPs of `forward_flops_per_token`: C_t + 3 C_s,
    about 2 P_t + 6 P_s for P parameters. Recomputation by gradient checkpointing is not counted.
    """
    flops = 3 * forward_flops_per_token(student, seq_len)
    return flops if teacher is None else flops + forward_flops_per_token(teacher, seq_len)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """The device's dense FLOP/s in bf16; None where it is not known, or for other precisions."""
    if device.type != "cuda" or precision != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in _PEAK_BF16_FLOPS.items() if part in name), None)
