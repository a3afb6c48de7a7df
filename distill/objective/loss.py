"""The distillation loss from last hidden states and output heads, in token chunks.

No [tokens, vocabulary] tensor of either model ever exists: for each chunk of tokens the logits of both models are
made in two reused buffers, the student's are overwritten by the loss's gradient with respect to them, and that is
multiplied at once with the head and with the hidden states. Four products in all, the least there can be; what lies
between them is `compress.distill.objective.tiles`'s business.
"""

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from compress.base.errors import UsageError
from compress.distill.objective.divergences import DIVERGENCES, DivergenceName, TileLoss, sum_dtype
from compress.distill.objective.tiles import at_least_fp32, tile_pass
from compress.model.parts import OutputHead

IGNORE_INDEX = -100

_VOCABULARY_BLOCK = 8192


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
    divergence: DivergenceName
    chunk_tokens: int | None = None
    fused: bool = True


@dataclasses.dataclass(frozen=True)
class _Task:
    """What the autograd function needs besides the three tensors it differentiates."""

    labels: Tensor
    head: OutputHead
    teacher_hidden: Tensor | None
    teacher: OutputHead | None
    tile: TileLoss
    divisor: float
    chunk_tokens: int | None
    fused: bool


def distillation_loss(
    student_hidden: Tensor,
    student_head: Tensor | OutputHead,
    teacher_hidden: Tensor | None,
    teacher_head: Tensor | OutputHead | None,
    labels: Tensor,
    *,
    alpha: float = 0.8,
    temperature: float = 1.0,
    divergence: DivergenceName = "forward_kl",
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
        divergence: `forward_kl`, `cross_entropy` against the teacher (the same gradient), `reverse_kl` or
            `jensen_shannon`, both tempered too.
        ignore_index: labels with this value are left out and never reach a head. None promises that there are none,
            and saves the device a synchronisation.
        chunk_tokens: tokens whose logits exist at once; by default `default_chunk_tokens`.
        num_tokens: divisor of the sums; by default the number of valid labels. Micro-batches of one step pass the
            step's global number of valid labels, so that their gradients add up to the whole batch's.
        fused: take the compiled pass over the logits where there is one: C++ on CPUs, Triton on CUDA devices, for the
            first two divergences. False takes torch's operations, which differ from it by rounding.

    Under autocast the products run in its dtype; else in the promotion of the hidden states' and the head's. Softmax
    is taken in at least fp32, losses are summed in float64, the head's gradient is accumulated in at least fp32.

    Raises:
        UsageError: shapes that do not fit, an unknown divergence, a temperature or alpha out of range, or a teacher
            missing at alpha > 0.
    """
    student = student_head if isinstance(student_head, OutputHead) else OutputHead(student_head)
    teacher = teacher_head if isinstance(teacher_head, OutputHead | None) else OutputHead(teacher_head)
    options = LossOptions(
        alpha=alpha, temperature=temperature, divergence=divergence, chunk_tokens=chunk_tokens, fused=fused
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
) -> DistillationLoss:
    """`distillation_loss` of labels that are all valid, by options that were checked before, as a config's are."""
    student_hidden = student_hidden.to(_compute_dtype(student_hidden, student.weight))
    if teacher_hidden is not None and teacher is not None:
        teacher_hidden = teacher_hidden.detach().to(_compute_dtype(teacher_hidden, teacher.weight))
    differentiable = [student_hidden, student.weight, *([] if student.bias is None else [student.bias])]
    task = _Task(
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
        ),
        divisor=float(max(len(labels), 1) if num_tokens is None else num_tokens),
        chunk_tokens=options.chunk_tokens,
        fused=options.fused,
    )
    loss, soft, hard = _ChunkedLoss.apply(student_hidden, student.weight, student.bias, task)  # type: ignore[no-untyped-call]
    return DistillationLoss(loss, soft, hard, len(labels))


class _ChunkedLoss(torch.autograd.Function):
    """Loss and gradients in one pass over token chunks; backward only hands the gradients over."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, task: _Task) -> tuple[Tensor, ...]:
        wanted = [task.tile.gradient and needed for needed in ctx.needs_input_grad[:3]]
        with torch.autocast(hidden.device.type, enabled=False):
            soft, hard, gradients = _run(hidden, weight, bias, task, wanted)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(soft, hard)
        return task.tile.alpha * soft + (1 - task.tile.alpha) * hard, soft, hard

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        upstream = gradients[0]
        if upstream.device.type == "cpu" and upstream.item() == 1.0:
            return (*ctx.saved_tensors, None)
        return (*(None if g is None else g * upstream for g in ctx.saved_tensors), None)


def _run(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, task: _Task, wanted: list[bool]
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Mean soft and hard losses, and the gradients of hidden [N, D], weight [V, D] and bias [V] where wanted."""
    head = dataclasses.replace(task.head, weight=weight.to(hidden.dtype), bias=bias)
    teacher = _cast(task.teacher, task.teacher_hidden)
    chunk = _chunk_length(len(hidden), head.weight, task.chunk_tokens)
    logits = hidden.new_empty(chunk, len(weight))
    teacher_logits = None if task.teacher_hidden is None else task.teacher_hidden.new_empty(chunk, len(weight))
    losses_then_gradient_ = tile_pass(task.tile, logits, fused=task.fused)
    sums = torch.zeros(2, dtype=sum_dtype(hidden.device), device=hidden.device)
    d_hidden = torch.zeros_like(hidden) if wanted[0] else None
    make = torch.empty_like if len(hidden) else torch.zeros_like
    d_weight = make(weight, dtype=at_least_fp32(weight)) if wanted[1] else None
    d_bias = None if bias is None or not wanted[2] else torch.zeros_like(bias, dtype=at_least_fp32(bias))
    factor = head.scale / task.divisor
    for start in range(0, len(hidden), chunk):
        rows = hidden[start : start + chunk]
        z = _project(rows, head, out=logits[: len(rows)])
        z_teacher = None
        if teacher is not None and teacher_logits is not None and task.teacher_hidden is not None:
            z_teacher = _project(task.teacher_hidden[start : start + chunk], teacher, out=teacher_logits[: len(rows)])
        sums += losses_then_gradient_(z, z_teacher, task.labels[start : start + chunk])
        if d_hidden is not None:
            out = d_hidden[start : start + chunk]
            torch.addmm(out, z, head.weight, beta=0.0, alpha=factor, out=out)
        if d_weight is not None:
            _add_outer_(d_weight, z, rows, factor, beta=float(start > 0))
        if d_bias is not None:
            d_bias.add_(z.sum(0, dtype=d_bias.dtype), alpha=factor)
    soft, hard = (sums / task.divisor).unbind()
    return (
        soft.clone(),
        hard.clone(),
        [
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None or bias is None else d_bias.to(bias.dtype),
        ],
    )


def _project(hidden: Tensor, head: OutputHead, *, out: Tensor) -> Tensor:
    """scale * (h W^T + bias), before soft-capping, into `out` [C, V]."""
    if head.bias is None:
        return torch.addmm(out, hidden, head.weight.t(), beta=0.0, alpha=head.scale, out=out)
    bias = head.bias.to(hidden.dtype)
    return torch.addmm(bias, hidden, head.weight.t(), beta=head.scale, alpha=head.scale, out=out)


def _add_outer_(total: Tensor, gradient: Tensor, hidden: Tensor, factor: float, *, beta: float) -> None:
    """total [V, D] = beta * total + factor * G^T h; products of lower precision are added up in `total`'s.

    At beta = 0 what `total` holds is not read. cuBLAS adds up itself; elsewhere products of lower precision are made
    and added block by block.
    """
    if total.dtype == gradient.dtype:
        torch.addmm(total, gradient.t(), hidden, beta=beta, alpha=factor, out=total)
        return
    if total.device.type == "cuda":
        torch.addmm(total, gradient.t(), hidden, out_dtype=total.dtype, beta=beta, alpha=factor, out=total)
        return
    for start in range(0, len(total), _VOCABULARY_BLOCK):
        block = slice(start, start + _VOCABULARY_BLOCK)
        product = gradient[:, block].t() @ hidden
        if beta:
            total[block].add_(product, alpha=factor)
        else:
            torch.mul(product, factor, out=total[block])


def default_chunk_tokens(device: torch.device, vocabulary: int) -> int:
    """How many tokens' logits make a chunk that uses the device well.

    As many as have 128 MiB of fp32 logits on CPUs: larger chunks leave the caches, smaller ones make narrow products.
    On CUDA devices a 256th of their memory, at most 512 MiB (also for a GPU that is only planned for). What happens to
    be free has no say: the chunks' sums would round otherwise at the next start, and a resumed run would not be the
    same bit for bit.
    """
    room = 128 << 20
    if device.type == "cuda":
        room = 512 << 20
        if torch.cuda.is_available():
            room = min(room, torch.cuda.get_device_properties(device).total_memory // 256)
    return max(32, room // (4 * vocabulary))


def _chunk_length(rows: int, weight: Tensor, asked: int | None) -> int:
    """Tokens a chunk, in chunks of even size."""
    limit = asked or default_chunk_tokens(weight.device, len(weight))
    chunks = max(1, -(-rows // limit))
    return max(1, -(-rows // chunks))


def _cast(head: OutputHead | None, hidden: Tensor | None) -> OutputHead | None:
    if head is None or hidden is None:
        return None
    return dataclasses.replace(head, weight=head.weight.detach().to(hidden.dtype))


def _compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(hidden.dtype, weight.dtype)


def _check_options(options: LossOptions, *, with_teacher: bool) -> None:
    alpha, temperature = options.alpha, options.temperature
    if options.divergence not in DIVERGENCES:
        raise UsageError(f"divergence = {options.divergence!r}; choose one of {', '.join(DIVERGENCES)}.")
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
