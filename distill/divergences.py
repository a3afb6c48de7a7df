"""Divergences between teacher and student as pure functions on one tile of logits.

Each takes two `Tempered` tiles and returns the divergence of every row and its gradient with respect to the
student's tempered logits. Chunking, temperature factors, the hard loss and the products with the heads are
`compress.distill.loss`'s business, once for all divergences.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

DivergenceName = Literal["forward_kl", "cross_entropy"]


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


DIVERGENCES: dict[str, Callable[[Tempered, Tempered], tuple[Tensor, Tensor]]] = {
    "forward_kl": forward_kl,
    "cross_entropy": cross_entropy,
}
