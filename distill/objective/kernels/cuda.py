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
from compress.distill.objective.kernels import KERNELS

_BLOCK = 4096


def losses_then_gradient_(student: Tensor, teacher: Tensor | None, labels: Tensor, terms: TileLoss) -> Tensor:
    """[soft, hard] sums of a chunk, float64 [2]; overwrites `student` [C, V] with the gradient where one is wanted.

    `student` and `teacher` are contiguous logits of any floating dtype before soft-capping, `labels` int64 [C]. The
    divergence is one of `KERNELS`. Nothing waits for the device.
    """
    count, width = student.shape
    losses = torch.empty(2, count, dtype=torch.float64, device=student.device)
    block = min(_BLOCK, triton.next_power_of_2(width))
    _row[(count,)](
        student, student if teacher is None else teacher, labels, losses[0], losses[1], width,
        terms.alpha, terms.temperature, terms.student_cap or 0.0, terms.teacher_cap or 0.0,
        terms.divergence.parameter, HAS_TEACHER=teacher is not None, UNIT_TEMPERATURE=terms.temperature == 1.0,
        DIVERGENCE=KERNELS[terms.divergence.name], GRADIENT=terms.gradient, BLOCK=block,
        num_warps=max(1, block // 512),
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
def _ratio(a, b):
    return tl.minimum(a / b, 1e37, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _element(p, q, d, parameter, DIVERGENCE: tl.constexpr):  # noqa: N803
    """What an element adds to the divergence D(p, q), and w = q dD/dq; d is log q - log p. As in cpu.cpp."""
    p = tl.maximum(p, 1e-37, propagate_nan=tl.PropagateNan.ALL)
    q = tl.maximum(q, 1e-37, propagate_nan=tl.PropagateNan.ALL)
    rest = 1 - parameter
    if DIVERGENCE == 2:  # symmetric KL
        reverse = rest * q * d
        loss = reverse - parameter * p * d
        w = reverse - parameter * p
    elif DIVERGENCE == 3:  # generalised JS
        w = -rest * q * tl.log(parameter * _ratio(p, q) + rest)
        loss = w - parameter * p * tl.log(parameter + rest * _ratio(q, p))
    elif DIVERGENCE == 4:  # total variation
        loss = tl.abs(q - p) / 2
        w = tl.where(q > p, q, tl.where(q < p, -q, q - p)) / 2
    elif DIVERGENCE == 5:  # skew forward KL
        m = parameter + rest * _ratio(q, p)
        loss = -p * tl.log(m)
        w = -rest * q / m
    else:  # skew reverse KL
        m = rest * _ratio(p, q) + parameter
        loss = -q * tl.log(m)
        w = loss - q * parameter / m
    return loss, w


@triton.jit
def _row(
    student, teacher, labels, soft, hard, width, alpha, temperature, student_cap, teacher_cap, parameter,
    HAS_TEACHER: tl.constexpr, UNIT_TEMPERATURE: tl.constexpr, DIVERGENCE: tl.constexpr, GRADIENT: tl.constexpr,  # noqa: N803
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
            if DIVERGENCE >= 1:
                difference += z_t - base_t
            cross = cross * rescale + tl.sum(weight * difference, 0)
            top_t = new_t
        top = new
    if UNIT_TEMPERATURE:
        total = total_1

    tl.store(hard + row, (top - label_logit).to(tl.float64) + tl.log(total_1.to(tl.float64)))
    w_total = tl.full((), -1.0, tl.float32)
    shift = total - total
    if HAS_TEACHER:
        loss = (cross / total_t).to(tl.float64) / temperature
        loss += (top - base).to(tl.float64) / temperature + tl.log(total.to(tl.float64))
        if DIVERGENCE >= 1:
            loss -= (top_t - base_t).to(tl.float64) / temperature + tl.log(total_t.to(tl.float64))
        if DIVERGENCE >= 2:
            # of log q - log p what is no difference of logits
            shift = (tl.log(total_t.to(tl.float64)) - tl.log(total.to(tl.float64))).to(tl.float32)
            sums = tl.zeros((BLOCK,), tl.float32)
            w_sums = tl.zeros((BLOCK,), tl.float32)
            for start in range(0, width, BLOCK):
                inside = start + lanes < width
                z = _logits(student + start + lanes, inside, student_cap, STUDENT_CAPPED)
                z_t = _logits(teacher + start + lanes, inside, teacher_cap, TEACHER_CAPPED)
                q = tl.exp((z - top) / temperature) / total
                p = tl.exp((z_t - top_t) / temperature) / total_t
                one, w = _element(p, q, ((z - top) - (z_t - top_t)) / temperature + shift, parameter, DIVERGENCE)
                sums += tl.where(inside, one, 0.0)
                w_sums += tl.where(inside, w, 0.0)
            loss = tl.sum(sums, 0).to(tl.float64)
            w_total = tl.sum(w_sums, 0)
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
                w = -p
                if DIVERGENCE >= 2:
                    _, w = _element(p, q, ((z - top) - (z_t - top_t)) / temperature + shift, parameter, DIVERGENCE)
                gradient += alpha * temperature * (w - q * w_total)
            if STUDENT_CAPPED:
                gradient *= 1 - (z / student_cap) * (z / student_cap)
            tl.store(student + start + lanes, gradient.to(student.dtype.element_ty), mask=inside)
