"""Divergences between teacher and student as pure functions on one tile of logits.

Each takes two `Tempered` tiles and returns the divergence of every row and its gradient with respect to the
student's tempered logits. Chunking, temperature factors, the hard loss and the products with the heads are
`compress.distill.objective.loss`'s business, once for all divergences.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from compress.distill.config import DivergenceName

Divergence = Callable[["Tempered", "Tempered"], tuple[Tensor, Tensor]]
"""(student, teacher) -> of every row the divergence [R], and its gradient [R, V]."""


@dataclasses.dataclass(frozen=True)
class TileLoss:
    """What is made of a tile of logits: alpha * T^2 * divergence + (1 - alpha) * cross-entropy of the labels."""

    alpha: float
    temperature: float
    divergence: DivergenceName
    student_cap: float | None
    """c of the soft-capping c tanh(z / c) of the student's logits; None has none."""
    teacher_cap: float | None
    gradient: bool
    """Whether the gradient is wanted, or only the losses."""


class Tempered(NamedTuple):
    """A tile of logits divided by the temperature, with what every divergence needs of it."""

    logits: Tensor
    """z / T, [R, V], at least fp32."""
    probabilities: Tensor
    """softmax(z / T), [R, V]."""
    log_normaliser: Tensor
    """log sum exp(z / T), [R], float64 (fp32 on devices without it)."""


def sum_dtype(device: torch.device) -> torch.dtype:
    """The dtype losses are summed in: float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def tempered(logits: Tensor, temperature: float) -> Tempered:
    """Statistics of one tile [R, V].

    log sum exp(z) = max(z) - log(max(softmax(z))): exact, and on CPUs cheaper than a pass of exponentials.
    """
    if temperature != 1.0:
        logits = logits / temperature
    probabilities = torch.softmax(logits, -1)
    dtype = sum_dtype(logits.device)
    normaliser = logits.amax(-1).to(dtype) - probabilities.amax(-1).to(dtype).log()
    return Tempered(logits, probabilities, normaliser)


def forward_kl(student: Tempered, teacher: Tempered) -> tuple[Tensor, Tensor]:
    """KL(p || q) = sum p (log p - log q) of each row, [R]; gradient q - p, [R, V] (Hinton et al., arXiv:1503.02531).

    p is the teacher's distribution and q the student's, both tempered. Differences of logits are taken before they
    are weighted and summed, so that KL(p || p) is exactly 0.
    """
    expected = (teacher.logits - student.logits).mul_(teacher.probabilities).sum(-1)
    rows = expected.to(student.log_normaliser.dtype) - teacher.log_normaliser + student.log_normaliser
    return rows, student.probabilities - teacher.probabilities


def cross_entropy(student: Tempered, teacher: Tempered) -> tuple[Tensor, Tensor]:
    """H(p, q) = -sum p log q of each row: forward KL plus the teacher's entropy, with the same gradient."""
    expected = (teacher.probabilities * student.logits).sum(-1)
    rows = student.log_normaliser - expected.to(student.log_normaliser.dtype)
    return rows, student.probabilities - teacher.probabilities


def reverse_kl(student: Tempered, teacher: Tempered) -> tuple[Tensor, Tensor]:
    """KL(q || p) of each row; gradient q (log q - log p - KL) (as in MiniLLM, Gu et al., arXiv:2306.08543)."""
    ratio = _log_probabilities(student) - _log_probabilities(teacher)
    return _expectation(student.probabilities, ratio)


def jensen_shannon(student: Tempered, teacher: Tempered) -> tuple[Tensor, Tensor]:
    """JS(p, q) = KL(p || m) / 2 + KL(q || m) / 2 with m = (p + q) / 2, of each row (GKD, Agarwal et al.,
    arXiv:2306.13649, at beta = 1/2).

    The derivative with respect to q is log(q / m) / 2, and through the softmax q (log(q / m) - KL(q || m)) / 2.
    """
    log_p, log_q = _log_probabilities(teacher), _log_probabilities(student)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    of_teacher = (teacher.probabilities * (log_p - log_m)).sum(-1, dtype=teacher.log_normaliser.dtype)
    of_student, gradient = _expectation(student.probabilities, log_q - log_m)
    return (of_teacher + of_student) / 2, gradient.mul_(0.5)


def symmetric_kl(student: Tempered, teacher: Tempered) -> tuple[Tensor, Tensor]:
    """KL(p || q) / 2 + KL(q || p) / 2 of each row, and the two gradients weighted so (Jeffreys' divergence, halved)."""
    forward, gradient = forward_kl(student, teacher)
    reverse, other = reverse_kl(student, teacher)
    return (forward + reverse) / 2, gradient.add_(other).mul_(0.5)


def _log_probabilities(tile: Tempered) -> Tensor:
    return tile.logits - tile.log_normaliser.to(tile.logits.dtype)[:, None]


def _expectation(weights: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """E = sum w v of each row in float64, and w (v - E)."""
    mean = (weights * values).sum(-1, dtype=sum_dtype(weights.device))
    return mean, weights * (values - mean.to(values.dtype)[:, None])


DIVERGENCES: dict[str, Divergence] = {name: globals()[name] for name in get_args(DivergenceName)}
