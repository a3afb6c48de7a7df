"""The GPU's pass over logits: one Triton program a row, with nothing but the two rows of logits in memory.

The first loop over a row keeps running maxima and sums of exponentials (online softmax: Milakov and Gimelshein,
arXiv:1805.02867); the second makes the gradient and writes it over the student's logits, which by then are mostly
still in the L2 cache. Works with CUDA devices, and on the CPU under Triton's interpreter (TRITON_INTERPRET=1).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from compress.distill.objective.divergences import TileLoss

_BLOCK = 4096


def losses_then_gradient_(student: Tensor, teacher: Tensor | None, labels: Tensor, terms: TileLoss) -> Tensor:
    """[soft, hard] sums of a chunk, float64 [2]; overwrites `student` [C, V] with the gradient where one is wanted.

    `student` and `teacher` are contiguous logits of any floating dtype before soft-capping, `labels` int64 [C]. The
    divergence is `forward_kl` or `cross_entropy`. Nothing waits for the device.
    """
    count, width = student.shape
    losses = torch.empty(2, count, dtype=torch.float64, device=student.device)
    block = min(_BLOCK, triton.next_power_of_2(width))
    _row[(count,)](
        student, student if teacher is None else teacher, labels, losses[0], losses[1], width,
        terms.alpha, terms.temperature, terms.student_cap or 0.0, terms.teacher_cap or 0.0,
        HAS_TEACHER=teacher is not None, UNIT_TEMPERATURE=terms.temperature == 1.0,
        ENTROPY=terms.divergence == "forward_kl", GRADIENT=terms.gradient, BLOCK=block, num_warps=max(1, block // 512),
        STUDENT_CAPPED=terms.student_cap is not None, TEACHER_CAPPED=terms.teacher_cap is not None,
    )  # fmt: skip
    return losses.sum(1)


@triton.jit
def _tanh(x):
    return 1 - 2 / (tl.exp(2 * x) + 1)


@triton.jit
def _logits(start, inside, cap, CAPPED: tl.constexpr):  # noqa: N803
    """Soft-capped logits in fp32; past the end of the row -1e15, whose exponential is 0."""
    z = tl.load(start, mask=inside, other=-1e15).to(tl.float32)
    if CAPPED:
        z = tl.where(inside, cap * _tanh(z / cap), -1e15)
    return z


@triton.jit
def _row(
    student, teacher, labels, soft, hard, width, alpha, temperature, student_cap, teacher_cap,
    HAS_TEACHER: tl.constexpr, UNIT_TEMPERATURE: tl.constexpr, ENTROPY: tl.constexpr, GRADIENT: tl.constexpr,  # noqa: N803
    STUDENT_CAPPED: tl.constexpr, TEACHER_CAPPED: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    student += row * width
    teacher += row * width
    label = tl.load(labels + row)
    lanes = tl.arange(0, BLOCK)
    label_logit = _logits(student + label, True, student_cap, STUDENT_CAPPED)

    # Differences of logits are taken from the row's first ones, so that what all share does not cost digits.
    base = _logits(student, True, student_cap, STUDENT_CAPPED)
    base_t = _logits(teacher, True, teacher_cap, TEACHER_CAPPED)
    top = tl.full((), -1e15, tl.float32)
    total = tl.full((), 0.0, tl.float32)
    top_t, total_1, total_t, cross = top, total, total, total
    for start in range(0, width, BLOCK):
        inside = start + lanes < width
        z = _logits(student + start + lanes, inside, student_cap, STUDENT_CAPPED)
        new = tl.maximum(top, tl.max(z, 0))
        total_1 = total_1 * tl.exp(top - new) + tl.sum(tl.exp(z - new), 0)
        if HAS_TEACHER:
            if not UNIT_TEMPERATURE:
                total = total * tl.exp((top - new) / temperature) + tl.sum(tl.exp((z - new) / temperature), 0)
            z_t = _logits(teacher + start + lanes, inside, teacher_cap, TEACHER_CAPPED)
            new_t = tl.maximum(top_t, tl.max(z_t, 0))
            weight = tl.exp((z_t - new_t) / temperature)
            rescale = tl.exp((top_t - new_t) / temperature)
            total_t = total_t * rescale + tl.sum(weight, 0)
            difference = base - z
            if ENTROPY:
                difference += z_t - base_t
            cross = cross * rescale + tl.sum(weight * difference, 0)
            top_t = new_t
        top = new
    if UNIT_TEMPERATURE:
        total = total_1

    tl.store(hard + row, (top - label_logit).to(tl.float64) + tl.log(total_1.to(tl.float64)))
    if HAS_TEACHER:
        loss = (cross / total_t).to(tl.float64) / temperature
        loss += (top - base).to(tl.float64) / temperature + tl.log(total.to(tl.float64))
        if ENTROPY:
            loss -= (top_t - base_t).to(tl.float64) / temperature + tl.log(total_t.to(tl.float64))
        tl.store(soft + row, loss * temperature * temperature)
    else:
        tl.store(soft + row, 0.0)

    if GRADIENT:
        for start in range(0, width, BLOCK):
            inside = start + lanes < width
            z = _logits(student + start + lanes, inside, student_cap, STUDENT_CAPPED)
            hit = (start + lanes == label).to(tl.float32)
            gradient = (1 - alpha) * (tl.exp(z - top) / total_1 - hit)
            if HAS_TEACHER:
                z_t = _logits(teacher + start + lanes, inside, teacher_cap, TEACHER_CAPPED)
                q = tl.exp((z - top) / temperature) / total
                p = tl.exp((z_t - top_t) / temperature) / total_t
                gradient += alpha * temperature * (q - p)
            if STUDENT_CAPPED:
                gradient *= 1 - (z / student_cap) * (z / student_cap)
            tl.store(student + start + lanes, gradient.to(student.dtype.element_ty), mask=inside)
