"""One distillation loss, as each peer computes it: alpha T^2 KL(p_t || p_s) + (1 - alpha) CE, means over valid tokens.

Each peer is called as its documentation says. Where one lacks a part of the definition, the call adds it outside, so
that all do the same work and return the same gradients; `note` says what was added.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from harness import Shape, installed
from torch import Tensor
from torch.nn import functional

from compress.distill import distillation_loss

IGNORED = -100
ALPHA = 0.8
CHUNKS = 8


@dataclasses.dataclass
class Inputs:
    """Hidden states [N, D], heads [V, D] and labels [N]; the student's two carry gradients."""

    hidden: Tensor
    head: Tensor
    teacher_hidden: Tensor
    teacher_head: Tensor
    labels: Tensor

    @classmethod
    def random(
        cls,
        shape: Shape,
        dtype: torch.dtype,
        device: str,
        *,
        ignored: float = 0.0,
        seed: int = 0,
        distance: float = 0.3,
    ) -> "Inputs":
        """Logits of standard deviation 2; the teacher is the student plus `distance` times as much noise."""
        make = torch.Generator(device).manual_seed(seed)
        size: dict[str, Any] = {"device": device, "generator": make}
        hidden = torch.randn(shape.tokens, shape.width, **size)
        head = torch.randn(shape.vocabulary, shape.width, **size).mul_(2 / shape.width**0.5)
        teacher_hidden = torch.randn(hidden.shape, **size).mul_(distance).add_(hidden).to(dtype)
        teacher_head = torch.randn(head.shape, **size).mul_(distance * 2 / shape.width**0.5).add_(head).to(dtype)
        labels = torch.randint(shape.vocabulary, (shape.tokens,), **size)
        labels[torch.rand(shape.tokens, **size) < ignored] = IGNORED
        hidden, head = hidden.to(dtype).requires_grad_(), head.to(dtype).requires_grad_()
        return cls(hidden, head, teacher_hidden, teacher_head, labels)

    def clear(self) -> None:
        """Drop the gradients."""
        self.hidden.grad = self.head.grad = None


@dataclasses.dataclass(frozen=True)
class Peer:
    """A loss by name: `loss(inputs, temperature)` is differentiable."""

    name: str
    label: str
    loss: Callable[[Inputs, float], Tensor]
    package: str | None = None
    """The package it needs besides torch."""
    devices: tuple[str, ...] = ("cpu", "cuda")
    has_entropy: bool = True
    """Whether the soft term is the KL divergence; without the teacher's entropy it is their cross-entropy."""
    compiled: bool = False
    """Whether it compiles for a shape at the first call."""
    note: str = ""


def ours(x: Inputs, temperature: float) -> Tensor:
    """`compress.distill.distillation_loss`."""
    out = distillation_loss(
        x.hidden, x.head, x.teacher_hidden, x.teacher_head, x.labels, alpha=ALPHA, temperature=temperature
    )
    return out.loss


def dense(x: Inputs, temperature: float) -> Tensor:
    """The loss as one would write it with care: valid rows only, softmax in fp32, one log-softmax at T = 1."""
    hidden, teacher_hidden, labels = x.hidden, x.teacher_hidden, x.labels
    valid = labels != IGNORED
    if not valid.all():
        hidden, teacher_hidden, labels = hidden[valid], teacher_hidden[valid], labels[valid]
    logits = hidden @ x.head.t()
    logs = logits.log_softmax(-1, dtype=torch.float32)
    tempered = logs if temperature == 1 else (logits / temperature).log_softmax(-1, dtype=torch.float32)
    with torch.no_grad():
        teacher_logits = teacher_hidden @ x.teacher_head.t()
        if temperature != 1:
            teacher_logits = teacher_logits / temperature
        target = teacher_logits.log_softmax(-1, dtype=torch.float32)
    soft = functional.kl_div(tempered, target, log_target=True, reduction="batchmean")
    return ALPHA * temperature**2 * soft + (1 - ALPHA) * functional.nll_loss(logs, labels)


def distillkit(x: Inputs, temperature: float) -> Tensor:
    """DistillKit's dense KL: fp32 log-softmax of both logits / T, kl_div summed over the vocabulary, masked, T^2 / n.

    The formula of arcee-ai/DistillKit, `distillkit/lossfuncs/kl.py` (`dense_kl_div` and `KLDLoss`, at 361c7ac), written
    anew; the cross-entropy is the model's own, of fp32 logits.
    """
    logits = x.hidden @ x.head.t()
    with torch.no_grad():
        teacher_logits = x.teacher_hidden @ x.teacher_head.t()
    mask = x.labels != IGNORED
    ours_, theirs = ((z.float() / temperature).log_softmax(-1) for z in (logits, teacher_logits))
    rows = functional.kl_div(ours_, theirs, log_target=True, reduction="none").sum(-1) * mask
    soft = rows.sum() * temperature**2 / mask.sum()
    return ALPHA * soft + (1 - ALPHA) * functional.cross_entropy(logits.float(), x.labels, ignore_index=IGNORED)


def trl(x: Inputs, temperature: float) -> Tensor:
    """TRL's `GKDTrainer.generalized_jsd_loss` at beta = 0 (forward KL), and transformers' cross-entropy."""
    from trl.experimental.gkd import GKDTrainer

    logits = (x.hidden @ x.head.t())[None]
    with torch.no_grad():
        teacher_logits = (x.teacher_hidden @ x.teacher_head.t())[None]
    soft = GKDTrainer.generalized_jsd_loss(logits, teacher_logits, x.labels[None], beta=0.0, temperature=temperature)
    hard = functional.cross_entropy(logits[0].float(), x.labels, ignore_index=IGNORED)
    return ALPHA * temperature**2 * soft + (1 - ALPHA) * hard


def torchtune(x: Inputs, temperature: float) -> Tensor:
    """torchtune's `ForwardKLWithChunkedOutputLoss` and `CEWithChunkedOutputLoss` over its default of 8 chunks."""
    from torchtune.modules.loss import CEWithChunkedOutputLoss, ForwardKLWithChunkedOutputLoss

    logits = [part @ x.head.t() for part in x.hidden[None].chunk(CHUNKS, dim=1)]
    with torch.no_grad():
        teacher_logits = [part @ x.teacher_head.t() for part in x.teacher_hidden[None].chunk(CHUNKS, dim=1)]
    tempered, target = logits, teacher_logits
    if temperature != 1:
        tempered, target = [z / temperature for z in logits], [z / temperature for z in teacher_logits]
    soft = ForwardKLWithChunkedOutputLoss(CHUNKS, IGNORED)(tempered, target, x.labels[None])
    hard = CEWithChunkedOutputLoss(CHUNKS, IGNORED)(logits, x.labels[None])
    return ALPHA * temperature**2 * soft + (1 - ALPHA) * hard


def liger(x: Inputs, temperature: float, *, compiled: bool = False) -> Tensor:
    """Liger's `LigerFusedLinearJSDLoss` at beta = 0 (forward KL): head and loss in chunks of torch operations."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=1 - ALPHA,
        weight_soft_loss=ALPHA * temperature**2,
        beta=0.0,
        ignore_index=IGNORED,
        temperature=temperature,
        compiled=compiled,
    )
    out: Tensor = loss(x.hidden, x.head, x.teacher_hidden, x.teacher_head, x.labels)
    return out


def liger_compiled(x: Inputs, temperature: float) -> Tensor:
    """The same under torch.compile, which is Liger's default."""
    return liger(x, temperature, compiled=True)


def liger_fused(x: Inputs, temperature: float) -> Tensor:
    """Liger's Triton kernels: `LigerFusedLinearJSD` at beta = 0 and `LigerFusedLinearCrossEntropyLoss`."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss, LigerFusedLinearJSD

    soft = LigerFusedLinearJSD(jsd_beta=0.0, ignore_index=IGNORED, temperature=temperature)
    hard = LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORED)
    kl = soft(x.hidden, x.head, x.teacher_hidden, x.teacher_head, x.labels)
    out: Tensor = ALPHA * temperature**2 * kl + (1 - ALPHA) * hard(x.head, x.hidden, x.labels)
    return out


_NO_T2 = "T^2 multiplied outside"
PEERS = (
    Peer("ours", "compress", ours),
    Peer("dense", "dense PyTorch", dense),
    Peer("trl", "TRL GKD loss + CE", trl, "trl", note=_NO_T2),
    Peer("torchtune", "torchtune, 8 chunks", torchtune, "torchtune", has_entropy=False,
         note="no temperature: logits divided outside; lacks the teacher's entropy, so its value is a cross-entropy"),
    Peer("distillkit", "DistillKit's dense formula", distillkit),
    Peer("liger", "Liger chunked", liger, "liger", note=f"{_NO_T2}; compiled=False"),
    Peer("liger_compiled", "Liger chunked, compiled", liger_compiled, "liger", compiled=True,
         note=f"{_NO_T2}; Liger's default"),
    Peer("liger_fused", "Liger Triton JSD + CE", liger_fused, "liger", ("cuda",),
         note=f"{_NO_T2}; two fused losses, so six products"),
)  # fmt: skip


def available(device: str) -> list[Peer]:
    """Ours, and the peers whose packages are installed and that run on `device`."""
    return [p for p in PEERS if device in p.devices and (p.package is None or installed(p.package))]


def definition(x: Inputs, temperature: float, *, has_entropy: bool) -> Tensor:
    """The loss in float64 from its definition, differentiable in `x`'s tensors, which are float64 too."""
    valid = x.labels != IGNORED
    logits = x.hidden[valid] @ x.head.t()
    teacher = (x.teacher_hidden[valid] @ x.teacher_head.t()) / temperature
    log_q = logits / temperature - torch.logsumexp(logits / temperature, -1, keepdim=True)
    log_p = teacher - torch.logsumexp(teacher, -1, keepdim=True)
    soft = (log_p.exp() * ((log_p if has_entropy else 0.0) - log_q)).sum(-1).mean()
    label_logits = logits.gather(1, x.labels[valid][:, None]).squeeze(1)
    hard = (torch.logsumexp(logits, -1) - label_logits).mean()
    return ALPHA * temperature**2 * soft + (1 - ALPHA) * hard
