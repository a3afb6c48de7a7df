"""The distillation loss in token chunks.

No [tokens, vocabulary] tensor of either model ever exists: for each chunk of tokens the logits of both models are
made in two reused buffers, the student's are overwritten by the loss's gradient with respect to them, and that is
multiplied at once with the head and with the hidden states. Four products in all, the least there can be; what lies
between them is `compress.distill.objective.tiles`'s business.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from compress.distill.objective.divergences import TileLoss, sum_dtype
from compress.distill.objective.mixture import Mixture
from compress.distill.objective.sparse import Sparse, sparse_pass
from compress.distill.objective.tiles import at_least_fp32, tile_pass
from compress.model.parts import OutputHead

_VOCABULARY_BLOCK = 8192
_MOST_CHUNK_TOKENS = 4096
_PLANNED_MEMORY = 80 << 30


@dataclasses.dataclass(frozen=True)
class Task:
    """What the autograd function needs besides the three tensors it differentiates."""

    labels: Tensor
    head: OutputHead
    teacher_hidden: Tensor | None
    teacher: OutputHead | None
    tile: TileLoss
    divisor: float
    chunk_tokens: int | None
    fused: bool
    sparse: Sparse | None = None
    """What is known of the teacher in place of its hidden states and head."""
    mixture: Mixture | None = None
    """Several teachers, in place of one."""


class ChunkedLoss(torch.autograd.Function):
    """Loss and gradients in one pass over token chunks; backward only hands the gradients over."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, task: Task) -> tuple[Tensor, ...]:
        wanted = [task.tile.gradient and needed for needed in ctx.needs_input_grad[:3]]
        with torch.autocast(hidden.device.type, enabled=False), _added_up_exactly(hidden.device):
            soft, hard, gradients = _run(hidden, weight, bias, task, wanted)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(soft, hard)
        return task.tile.alpha * soft + (1 - task.tile.alpha) * hard, soft, hard

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        upstream = gradients[0]
        if upstream.device.type == "cpu" and upstream.item() == 1.0:
            return (*ctx.saved_tensors, None)
        # On a GPU in place, where the head's gradient is the largest tensor of a step; another backward pass through
        # the same graph is refused there.
        scaled = (None if g is None else g.mul_(upstream) if g.is_cuda else g * upstream for g in ctx.saved_tensors)
        return (*scaled, None)


@contextlib.contextmanager
def _added_up_exactly(device: torch.device) -> Iterator[None]:
    """Let cuBLAS add up the parts of bf16 and fp16 products in fp32 only: the sums here are over a whole vocabulary."""
    if device.type != "cuda":
        yield
        return
    products = torch.backends.cuda.matmul
    before = products.allow_bf16_reduced_precision_reduction, products.allow_fp16_reduced_precision_reduction
    products.allow_bf16_reduced_precision_reduction = products.allow_fp16_reduced_precision_reduction = False
    try:
        yield
    finally:
        products.allow_bf16_reduced_precision_reduction, products.allow_fp16_reduced_precision_reduction = before


def _run(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, task: Task, wanted: list[bool]
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Mean soft and hard losses, and the gradients of hidden [N, D], weight [V, D] and bias [V] where wanted."""
    head = dataclasses.replace(task.head, weight=weight.to(hidden.dtype), bias=bias)
    teacher = _cast(task.teacher, task.teacher_hidden)
    chunk = _chunk_length(len(hidden), head.weight, task.chunk_tokens)
    logits = hidden.new_empty(chunk, len(weight))
    teacher_logits = None if task.teacher_hidden is None else task.teacher_hidden.new_empty(chunk, len(weight))
    if task.mixture is not None:
        teacher_logits = torch.empty_like(logits)
    tile = task.tile if task.sparse is None else dataclasses.replace(task.tile, alpha=0.0)
    losses_then_gradient_ = tile_pass(tile, logits, fused=task.fused)
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
        if task.mixture is not None and teacher_logits is not None:
            place, room = slice(start, start + len(rows)), teacher_logits[: len(rows)]
            z_teacher = task.mixture.write_logits(place, task.tile.temperature, room)
        elif teacher is not None and teacher_logits is not None and task.teacher_hidden is not None:
            z_teacher = _project(task.teacher_hidden[start : start + chunk], teacher, out=teacher_logits[: len(rows)])
        labels = task.labels[start : start + chunk]
        if task.sparse is not None:
            target = task.sparse.take(slice(start, start + chunk))
            cap, gradient = task.tile.student_cap, task.tile.gradient
            sums += sparse_pass(
                losses_then_gradient_, z, target, labels, alpha=task.tile.alpha, cap=cap, gradient=gradient
            )
        else:
            sums += losses_then_gradient_(z, z_teacher, labels)
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


def default_chunk_tokens(device: torch.device, vocabulary: int, value_bytes: int) -> int:
    """How many tokens' logits, of `value_bytes` each, make a chunk that uses the device well.

    As many as have 128 MiB of fp32 logits on CPUs: larger chunks leave the caches, smaller ones make narrow products.
    On CUDA devices every chunk reads and writes the head's whole fp32 gradient, which the product with few tokens does
    not pay for: 4096 tokens, or what a 48th of the memory holds (2048 of a vocabulary of 128k in bf16 with 24 GiB;
    80 GiB are assumed of a GPU that is only planned for). What happens to be free has no say: the chunks' sums would
    round otherwise at the next start, and a resumed run would not be the same bit for bit.
    """
    if device.type != "cuda":
        return max(32, (128 << 20) // (4 * vocabulary))
    here = torch.cuda.is_available()
    memory = torch.cuda.get_device_properties(device).total_memory if here else _PLANNED_MEMORY
    return min(_MOST_CHUNK_TOKENS, max(32, memory // 48 // (value_bytes * vocabulary)))


def _chunk_length(rows: int, weight: Tensor, asked: int | None) -> int:
    """Tokens a chunk, in chunks of even size."""
    limit = asked or default_chunk_tokens(weight.device, len(weight), weight.element_size())
    chunks = max(1, -(-rows // limit))
    return max(1, -(-rows // chunks))


def _cast(head: OutputHead | None, hidden: Tensor | None) -> OutputHead | None:
    if head is None or hidden is None:
        return None
    return dataclasses.replace(head, weight=head.weight.detach().to(hidden.dtype))
