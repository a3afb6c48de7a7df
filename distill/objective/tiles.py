"""From a chunk of logits to its losses and the gradient written over the student's.

Three routes do the same: a C++ pass on CPUs, a Triton kernel on CUDA devices, and torch's own operations for what they
do not have (KERNELS names what they do), in float64 where there is little of it.
"""

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from compress.distill.objective.divergences import TileLoss, corrected, divergence, softcap, sum_dtype, tempered
from compress.distill.objective.kernels import KERNELS, cpu

TilePass = Callable[[Tensor, Tensor | None, Tensor], Tensor]
"""(student [C, V], teacher [C, V] or None, labels [C]) -> [soft, hard] sums; overwrites `student` with d(sum of
alpha soft + (1 - alpha) hard) / d(logits) where the gradient is wanted."""

_TILE_BYTES = 2 << 20
_EXACT_VALUES = 1 << 16


def tile_pass(terms: TileLoss, student: Tensor, *, fused: bool) -> TilePass:
    """The quickest pass for contiguous logits like `student` [C, V]; `fused=False` takes torch's operations.

    Few logits are taken in float64 where the device has it: that costs nothing, and a KL of few tokens is a small
    difference of large numbers.
    """
    device, dtype = student.device.type, student.dtype
    if student.numel() <= _EXACT_VALUES:
        exact = sum_dtype(student.device)
        return lambda z, z_teacher, labels: _with_torch(z, z_teacher, labels, terms, exact)
    special = fused and terms.divergence.name in KERNELS and terms.self_correct is None
    if special and device == "cuda" and find_spec("triton") is not None:
        from compress.distill.objective.kernels import cuda

        return lambda z, z_teacher, labels: cuda.losses_then_gradient_(z, z_teacher, labels, terms)
    uncapped = terms.student_cap is None and terms.teacher_cap is None
    if special and uncapped and device == "cpu" and dtype in cpu.DTYPES and cpu.available():
        room = cpu.scratch(student.shape[1])
        return lambda z, z_teacher, labels: cpu.losses_then_gradient_(z, z_teacher, labels, terms, room)
    wide = at_least_fp32(student)
    return lambda z, z_teacher, labels: _with_torch(z, z_teacher, labels, terms, wide)


def _with_torch(student: Tensor, teacher: Tensor | None, labels: Tensor, terms: TileLoss, dtype: torch.dtype) -> Tensor:
    """The pass in `dtype`. On the CPU the chunk is taken in tiles of a few rows, which stay in the cache."""
    rows = len(student)
    if student.device.type == "cpu":
        rows = max(1, _TILE_BYTES // (student.shape[1] * 4))
    sums = torch.zeros(2, dtype=sum_dtype(student.device), device=student.device)
    for start in range(0, len(student), rows):
        tile = student[start : start + rows]
        teacher_tile = None if teacher is None else teacher[start : start + rows]
        soft, hard, gradient = _tile(tile, teacher_tile, labels[start : start + rows], terms, dtype)
        sums[0] += soft
        sums[1] += hard
        if gradient is not None:
            tile.copy_(gradient)
    return sums


def _tile(
    student: Tensor, teacher: Tensor | None, labels: Tensor, terms: TileLoss, dtype: torch.dtype
) -> tuple[Tensor | float, Tensor, Tensor | None]:
    """Soft and hard sums over one tile [R, V] of uncapped logits, and the gradient with respect to them."""
    alpha, temperature = terms.alpha, terms.temperature
    z, slope = softcap(student.to(dtype), terms.student_cap)
    plain = tempered(z, 1.0)
    label_logits = z.gather(1, labels[:, None]).squeeze(1)
    hard = (plain.log_normaliser - label_logits).sum()
    if teacher is None:
        soft: Tensor | float = 0.0
        gradient = plain.probabilities.mul_(1 - alpha)
    else:
        z_teacher, _ = softcap(teacher.to(dtype), terms.teacher_cap)
        soft_student = plain if temperature == 1.0 else tempered(z, temperature)
        soft_teacher = tempered(z_teacher, temperature)
        if terms.self_correct is not None:
            soft_teacher = corrected(soft_teacher, labels, terms.self_correct)
        row_losses, gradient = divergence(terms.divergence)(soft_student, soft_teacher)
        soft = row_losses.sum() * temperature**2
        gradient.mul_(alpha * temperature).add_(plain.probabilities, alpha=1 - alpha)
    if not terms.gradient:
        return soft, hard, None
    gradient.scatter_add_(1, labels[:, None], gradient.new_full((len(labels), 1), alpha - 1))
    return soft, hard, gradient if slope is None else gradient.mul_(slope)


def at_least_fp32(tensor: Tensor) -> torch.dtype:
    """fp32, or the tensor's dtype where that is wider."""
    return torch.promote_types(tensor.dtype, torch.float32)
