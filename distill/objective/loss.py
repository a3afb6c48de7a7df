"""The distillation loss from last hidden states and output heads: what it is, and what it is given."""

import dataclasses
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from compress.base.errors import UsageError
from compress.distill.config import DivergenceConfig, DivergenceName, divergence_of
from compress.distill.objective.chunks import ChunkedLoss, Task
from compress.distill.objective.divergences import TileLoss
from compress.distill.objective.mixture import Mixture
from compress.distill.objective.sparse import Sparse
from compress.model.parts import OutputHead

IGNORE_INDEX = -100


class DistillationLoss(NamedTuple):
    """What `distillation_loss` returns: scalars in float64, of which only `loss` carries a gradient."""

    loss: Tensor
    """alpha * soft + (1 - alpha) * hard."""
    soft: Tensor
    """T^2 times the mean divergence from the teacher, nats a token; 0 without a teacher."""
    hard: Tensor
    """Mean cross-entropy of the labels at temperature 1, nats a token."""
    num_tokens: int
    """Number of labels that are not ignored."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossOptions:
    """How soft and hard losses are made and weighed; the fields are arguments of `distillation_loss`."""

    alpha: float
    temperature: float
    divergence: DivergenceConfig
    """As `divergence_of` names it."""
    self_correct: float | None = None
    chunk_tokens: int | None = None
    fused: bool = True


def distillation_loss(
    student_hidden: Tensor,
    student_head: Tensor | OutputHead,
    teacher_hidden: Tensor | None,
    teacher_head: Tensor | OutputHead | None,
    labels: Tensor,
    *,
    alpha: float = 0.8,
    temperature: float = 1.0,
    divergence: DivergenceName | DivergenceConfig = "forward_kl",
    self_correct: float | None = None,
    ignore_index: int | None = IGNORE_INDEX,
    chunk_tokens: int | None = None,
    num_tokens: float | None = None,
    fused: bool = True,
) -> DistillationLoss:
    """alpha * soft + (1 - alpha) * hard, with its gradients made in the same pass.

    soft = T^2 mean KL(softmax(z_t / T) || softmax(z_s / T)) and hard = mean -log softmax(z_s)[label], over the
    labels that are not ignored; both models are tempered in `soft` (Hinton et al., arXiv:1503.02531, section 2).

    Args:
        student_hidden: [N, Ds], after the final norm; differentiable.
        student_head: weight [V, Ds], differentiable, or an `OutputHead` with bias, scale and soft-cap.
        teacher_hidden: [N, Dt]; None only with `alpha=0`, which is plain language modelling.
        teacher_head: weight [V, Dt] or an `OutputHead`; None with `teacher_hidden`.
        labels: [N] token ids, already shifted.
        alpha: weight of the soft term, 0 to 1.
        temperature: T > 0, of the soft term.
        divergence: what `soft` is in place of KL(p || q), of both models tempered: a function of
            `compress.distill.objective.divergences`, by name, or with its parameter.
        self_correct: tau of `compress.distill.objective.divergences.corrected`; None leaves the teacher as it is.
        ignore_index: labels with this value are left out and never reach a head. None promises that there are none,
            and saves the device a synchronisation.
        chunk_tokens: tokens whose logits exist at once; by default `default_chunk_tokens`.
        num_tokens: divisor of the sums; by default the number of valid labels. Micro-batches of one step pass the
            step's global number of valid labels, so that their gradients add up to the whole batch's.
        fused: take the compiled pass over the logits where there is one: C++ on CPUs, Triton on CUDA devices. False
            takes torch's operations, which differ from it by rounding.

    Under autocast the products run in its dtype; else in the promotion of the hidden states' and the head's. Softmax
    is taken in at least fp32, losses are summed in float64, the head's gradient is accumulated in at least fp32.

    Raises:
        UsageError: shapes that do not fit, an unknown divergence, a temperature or alpha out of range, or a teacher
            missing at alpha > 0.
    """
    student = student_head if isinstance(student_head, OutputHead) else OutputHead(student_head)
    teacher = teacher_head if isinstance(teacher_head, OutputHead | None) else OutputHead(teacher_head)
    _check_name(divergence)
    options = LossOptions(
        alpha=alpha,
        temperature=temperature,
        divergence=divergence_of(divergence),
        self_correct=self_correct,
        chunk_tokens=chunk_tokens,
        fused=fused,
    )
    _check_options(options, with_teacher=teacher is not None)
    _check_shapes(student_hidden, student, teacher_hidden, teacher, labels)
    if ignore_index is not None:
        valid = (labels != ignore_index).nonzero().squeeze(1)
        if len(valid) != len(labels):
            student_hidden, labels = student_hidden.index_select(0, valid), labels[valid]
            teacher_hidden = None if teacher_hidden is None else teacher_hidden[valid]
    return loss_of_valid(student_hidden, student, teacher_hidden, teacher, labels, options, num_tokens)


def loss_of_valid(
    student_hidden: Tensor,
    student: OutputHead,
    teacher_hidden: Tensor | None,
    teacher: OutputHead | None,
    labels: Tensor,
    options: LossOptions,
    num_tokens: float | None = None,
    sparse: Sparse | None = None,
    mixture: Mixture | None = None,
) -> DistillationLoss:
    """`distillation_loss` of labels that are all valid, by options that were checked before, as a config's are.

    With `sparse` or `mixture` there are no hidden states of a teacher: see `compress.distill.objective.sparse` and
    `compress.distill.objective.mixture`.
    """
    student_hidden = student_hidden.to(_compute_dtype(student_hidden, student.weight))
    if teacher_hidden is not None and teacher is not None:
        teacher_hidden = teacher_hidden.detach().to(_compute_dtype(teacher_hidden, teacher.weight))
    differentiable = [student_hidden, student.weight, *([] if student.bias is None else [student.bias])]
    task = Task(
        labels=labels,
        head=student,
        teacher_hidden=teacher_hidden,
        teacher=teacher,
        tile=TileLoss(
            alpha=options.alpha,
            temperature=options.temperature,
            divergence=options.divergence,
            student_cap=student.softcap,
            teacher_cap=None if teacher is None else teacher.softcap,
            gradient=torch.is_grad_enabled() and any(tensor.requires_grad for tensor in differentiable),
            self_correct=options.self_correct,
        ),
        divisor=float(max(len(labels), 1) if num_tokens is None else num_tokens),
        chunk_tokens=options.chunk_tokens,
        fused=options.fused,
        sparse=sparse,
        mixture=None if mixture is None else mixture.cast(_compute_dtype),
    )
    loss, soft, hard = ChunkedLoss.apply(student_hidden, student.weight, student.bias, task)  # type: ignore[no-untyped-call]
    return DistillationLoss(loss, soft, hard, len(labels))


def _compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(hidden.dtype, weight.dtype)


def _check_name(divergence: DivergenceName | DivergenceConfig) -> None:
    names = get_args(DivergenceName)
    if not isinstance(divergence, DivergenceConfig) and divergence not in names:
        raise UsageError(f"divergence = {divergence!r}; choose one of {', '.join(names)}.")


def _check_options(options: LossOptions, *, with_teacher: bool) -> None:
    alpha, temperature = options.alpha, options.temperature
    if not 0 <= alpha <= 1 or not 0 < temperature < float("inf"):
        raise UsageError(f"alpha = {alpha}, temperature = {temperature}: alpha is 0 to 1, the temperature above 0.")
    if not with_teacher and alpha > 0:
        raise UsageError(f"alpha = {alpha} needs the teacher's hidden states and its head; without them, alpha is 0.")


def _check_shapes(
    hidden: Tensor, head: OutputHead, teacher_hidden: Tensor | None, teacher: OutputHead | None, labels: Tensor
) -> None:
    if (teacher is None) != (teacher_hidden is None):
        raise UsageError("The teacher's hidden states and its head go together: one needs the other.")
    shapes = [("student_hidden", hidden, head)]
    if teacher is not None and teacher_hidden is not None:
        shapes.append(("teacher_hidden", teacher_hidden, teacher))
    for name, states, side in shapes:
        if states.ndim != 2 or states.shape != (len(labels), side.weight.shape[1]) or labels.ndim != 1:
            raise UsageError(
                f"{name} {list(states.shape)} does not fit its head {list(side.weight.shape)} and labels "
                f"{list(labels.shape)}: [N, D], [V, D] and [N] are needed."
            )
    if teacher is not None and len(teacher.weight) != len(head.weight):
        raise UsageError(
            f"The student's head has {len(head.weight)} rows and the teacher's {len(teacher.weight)}: slice both to "
            "the token ids they share."
        )
