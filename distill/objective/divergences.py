"""Divergences between teacher and student as pure functions on one tile of logits.

Each takes two `Tempered` tiles and returns the divergence of every row and its gradient with respect to the
student's tempered logits. Chunking, temperature factors, the hard loss and the products with the heads are
`compress.distill.objective.loss`'s business, once for all divergences.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from compress.distill.config import DivergenceConfig

_SMALLEST = 2.0**-20
Divergence = Callable[["Tempered", "Tempered"], tuple[Tensor, Tensor]]
"""(student, teacher) -> of every row the divergence [R], and its gradient [R, V]."""


@dataclasses.dataclass(frozen=True)
class TileLoss:
    """What is made of a tile of logits: alpha * T^2 * divergence + (1 - alpha) * cross-entropy of the labels."""

    alpha: float
    temperature: float
    divergence: DivergenceConfig
    """As `divergence_of` names it."""
    student_cap: float | None
    """c of the soft-capping c tanh(z / c) of the student's logits; None has none."""
    teacher_cap: float | None
    gradient: bool
    """Whether the gradient is wanted, or only the losses."""
    self_correct: float | None = None
    """tau of `corrected`; None leaves the teacher as it is."""


class Tempered(NamedTuple):
    """A tile of logits divided by the temperature, with what every divergence needs of it."""

    logits: Tensor
    """z / T, [R, V], at least fp32."""
    probabilities: Tensor
    """softmax(z / T), [R, V]."""
    log_normaliser: Tensor
    """log sum exp(z / T), [R], float64 (fp32 on devices without it)."""

    def log_probabilities(self) -> Tensor:
        """log softmax(z / T), [R, V]."""
        return self.logits - self.log_normaliser.to(self.logits.dtype)[:, None]


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


def softcap(logits: Tensor, cap: float | None) -> tuple[Tensor, Tensor | None]:
    """c tanh(z / c) and its slope 1 - tanh^2(z / c); logits as they are, and no slope, without a cap."""
    if cap is None:
        return logits, None
    tanh = torch.tanh(logits / cap)
    return tanh * cap, 1 - tanh.square()


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
    ratio = student.log_probabilities() - teacher.log_probabilities()
    return _expectation(student.probabilities, ratio)


def symmetric_kl(student: Tempered, teacher: Tempered, weight: float) -> tuple[Tensor, Tensor]:
    """lambda KL(p || q) + (1 - lambda) KL(q || p) of each row, and the two gradients weighted so; at 1/2 half of
    Jeffreys' divergence."""
    forward, gradient = forward_kl(student, teacher)
    reverse, other = reverse_kl(student, teacher)
    return weight * forward + (1 - weight) * reverse, gradient.mul_(weight).add_(other, alpha=1 - weight)


def generalised_js(student: Tempered, teacher: Tempered, beta: float) -> tuple[Tensor, Tensor]:
    """beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q, of each row, 0 < beta < 1; Jensen and
    Shannon's at 1/2 (GKD, Agarwal et al., arXiv:2306.13649).

    The derivative with respect to q is (1 - beta) log(q / m): what the mixture adds cancels.
    """
    log_p, log_q = teacher.log_probabilities(), student.log_probabilities()
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    of_teacher = (teacher.probabilities * (log_p - log_m)).sum(-1, dtype=teacher.log_normaliser.dtype)
    of_student, gradient = _expectation(student.probabilities, log_q - log_m)
    return beta * of_teacher + (1 - beta) * of_student, gradient.mul_(1 - beta)


def total_variation(student: Tempered, teacher: Tempered) -> tuple[Tensor, Tensor]:
    """sum |p - q| / 2 of each row; derivative sign(q - p) / 2."""
    difference = student.probabilities - teacher.probabilities
    rows = difference.abs().sum(-1, dtype=student.log_normaliser.dtype) / 2
    return rows, _through_softmax(student.probabilities, difference.sign_().mul_(0.5))


def skew_forward_kl(student: Tempered, teacher: Tempered, s: float) -> tuple[Tensor, Tensor]:
    """KL(p || m) with m = s p + (1 - s) q, of each row, 0 < s < 1; derivative -(1 - s) p / m (DistiLLM, Ko et al.,
    arXiv:2402.03898)."""
    log_p, log_q = teacher.log_probabilities(), student.log_probabilities()
    log_m = torch.logaddexp(log_p + math.log(s), log_q + math.log1p(-s))
    rows = (teacher.probabilities * (log_p - log_m)).sum(-1, dtype=teacher.log_normaliser.dtype)
    weighted = (log_p + log_q - log_m).exp_().mul_(s - 1)
    return rows, _centred(student.probabilities, weighted)


def skew_reverse_kl(student: Tempered, teacher: Tempered, s: float) -> tuple[Tensor, Tensor]:
    """KL(q || m) with m = (1 - s) p + s q, of each row, 0 < s < 1; derivative log(q / m) + 1 - s q / m (DistiLLM)."""
    log_p, log_q = teacher.log_probabilities(), student.log_probabilities()
    ratio = log_q - torch.logaddexp(log_p + math.log1p(-s), log_q + math.log(s))
    rows = (student.probabilities * ratio).sum(-1, dtype=student.log_normaliser.dtype)
    return rows, _through_softmax(student.probabilities, ratio.sub_(ratio.exp(), alpha=s))


def logit_mse(student: Tempered, teacher: Tempered) -> tuple[Tensor, Tensor]:
    """Mean over the vocabulary of (z_s - z_t)^2 of each row, both centred; gradient 2 (z_s - z_t) / V (Kim et al.,
    arXiv:2105.08919)."""
    difference = student.logits - teacher.logits
    difference -= difference.mean(-1, keepdim=True)
    rows = difference.square().mean(-1, dtype=student.log_normaliser.dtype)
    return rows, difference.mul_(2 / difference.shape[-1])


def uld(student: Tempered, teacher: Tempered) -> tuple[Tensor, Tensor]:
    """sum |sorted p - sorted q| of each row: Wasserstein's distance where tokens have no names, as those of two
    tokenizers (Boizard et al., arXiv:2402.12030). The smaller vocabulary counts as if it had more tokens, of
    probability 0. The derivative goes back by the student's permutation."""
    q, places = student.probabilities.sort(-1, descending=True)
    p = teacher.probabilities.sort(-1, descending=True).values
    missing = q.shape[-1] - p.shape[-1]
    difference = q - functional.pad(p, (0, missing))  # cut where the teacher has more
    rows = difference.abs().sum(-1, dtype=student.log_normaliser.dtype)
    if missing < 0:
        rows += p[..., missing:].sum(-1, dtype=rows.dtype)
    slope = torch.empty_like(difference).scatter_(-1, places, difference.sign_())
    return rows, _through_softmax(student.probabilities, slope)


def corrected(teacher: Tempered, labels: Tensor, tau: float) -> Tempered:
    """The teacher's tile with p' = (1 - m) p + m [y], so that it prefers the label by tau (`self_correct`; Model
    Optimizer's MFT): m = (p_max - p_y + tau) / (1 + p_max - p_y) where its first choice is another, else
    (min(1, p_y + tau) - p_y) / (1 - p_y) = min(1, tau / (1 - p_y)). m is kept below 1, for log p' to be finite."""
    p_max, first = teacher.probabilities.max(-1, keepdim=True)
    place = labels[:, None]
    p_y = teacher.probabilities.gather(-1, place)
    wrong = (p_max - p_y + tau) / (1 + p_max - p_y)
    right = tau / (1 - p_y)
    m = torch.where(first == place, right, wrong).clamp(max=1 - _SMALLEST)
    probabilities = (teacher.probabilities * (1 - m)).scatter_add(-1, place, m)
    of_label = probabilities.gather(-1, place).log() + teacher.log_normaliser.to(m.dtype)[:, None]
    logits = (teacher.logits + torch.log1p(-m)).scatter(-1, place, of_label)
    return Tempered(logits, probabilities, teacher.log_normaliser)


def _expectation(weights: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """E = sum w v of each row in float64, and w (v - E)."""
    mean = (weights * values).sum(-1, dtype=sum_dtype(weights.device))
    return mean, weights * (values - mean.to(values.dtype)[:, None])


def _through_softmax(q: Tensor, slope: Tensor) -> Tensor:
    """Of a loss with these derivatives with respect to q those with respect to the tempered logits."""
    return _expectation(q, slope)[1]


def _centred(q: Tensor, weighted: Tensor) -> Tensor:
    """The same from q times the derivatives."""
    total = weighted.sum(-1, dtype=sum_dtype(q.device)).to(q.dtype)
    return weighted.sub_(q * total[:, None])


_PLAIN: dict[str, Callable[[Tempered, Tempered], tuple[Tensor, Tensor]]] = {
    function.__name__: function for function in (forward_kl, cross_entropy, reverse_kl, total_variation, logit_mse, uld)
}
_WITH_PARAMETER: dict[str, Callable[[Tempered, Tempered, float], tuple[Tensor, Tensor]]] = {
    function.__name__: function for function in (symmetric_kl, generalised_js, skew_forward_kl, skew_reverse_kl)
}


def divergence(config: DivergenceConfig) -> Divergence:
    """The function of a divergence as `divergence_of` names it, with its parameter."""
    if config.name in _PLAIN:
        return _PLAIN[config.name]
    function, parameter = _WITH_PARAMETER[config.name], config.parameter
    return lambda student, teacher: function(student, teacher, parameter)
