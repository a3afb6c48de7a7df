"""Distances between the outputs of the student's blocks and the teacher's: the term `hidden`.

L = mean over pairs (i, j) and labels of d(P_i h_i, t_j), with h_i the output of the student's block i and t_j of the
teacher's block j, before the final norm where they are the last. d is 1 - cos(a, b) or mean((a - b)^2) over the width,
of a = LN(P h) and b = LN(t), LayerNorm without gain and bias: the first as in llama-distillation-torchtune, the second,
with a learned P, after FitNets (arXiv:1412.6550) and TinyBERT (arXiv:1909.10351).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.base.errors import UsageError
from compress.distill.config import DistillConfig, HiddenConfig
from compress.distill.objective.between_blocks import BetweenBlocks, require_teacher, times
from compress.distill.objective.divergences import sum_dtype
from compress.distill.objective.pairs import block_pairs
from compress.distill.objective.part import Pair

_EPSILON = 1e-5


class _Distance(torch.autograd.Function):
    """Sum over places of d, with its gradient made at once: of all that is in between nothing is kept."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, wanted: Tensor, config: HiddenConfig) -> Tensor:
        wanted_gradient = ctx.needs_input_grad[0]
        with torch.set_grad_enabled(wanted_gradient), torch.autocast(hidden.device.type, enabled=False):
            states = hidden.detach().requires_grad_(wanted_gradient)
            total = distances(states, wanted, config).sum(dtype=sum_dtype(hidden.device))
        ctx.save_for_backward(torch.autograd.grad(total, states)[0] if wanted_gradient else None)
        return total.detach()

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, None, None]:
        return times(ctx.saved_tensors[0], upstream[0]), None, None


def distances(hidden: Tensor, wanted: Tensor, config: HiddenConfig) -> Tensor:
    """d of each place [M], fp32, between states [M, D] of any floating dtype."""
    hidden, wanted = hidden.to(torch.float32), wanted.to(torch.float32)
    if config.layer_norm:
        hidden, wanted = (functional.layer_norm(states, states.shape[-1:], eps=_EPSILON) for states in (hidden, wanted))
    if config.distance == "cosine":
        return 1 - functional.cosine_similarity(hidden, wanted, dim=-1)
    return (hidden - wanted).square().mean(-1)


def hidden_states(config: DistillConfig, pair: Pair) -> BetweenBlocks | None:
    """The term as the options ask; None where it counts nothing.

    Raises:
        UsageError: there is no teacher, pairs that cannot be, or widths that differ without a projection.
    """
    if config.weights is None or config.weights.hidden is None:
        return None
    teacher = require_teacher("hidden", pair)
    asked = config.hidden or HiddenConfig()
    pairs = block_pairs("hidden", asked, pair)
    own, theirs = (model.get_text_config().hidden_size for model in (pair.student, teacher))
    if asked.projection == "identity" and own != theirs:
        raise UsageError(
            f"hidden.projection: identity needs models of one width, and the student's is {own}, the teacher's "
            f"{theirs}: use linear."
        )
    learned = None
    if asked.projection == "linear" or own != theirs:
        learned = nn.ModuleList(_projection(own, theirs, config.seed + number) for number in range(len(pairs)))
    return BetweenBlocks(
        "hidden",
        pairs,
        lambda hidden, wanted, _: _Distance.apply(hidden, wanted, asked),  # type: ignore[no-untyped-call]
        learned,
    )


def _projection(own: int, theirs: int, seed: int) -> nn.Linear:
    """Without bias: the identity where widths agree, else drawn so that lengths are kept on the mean."""
    linear = nn.Linear(own, theirs, bias=False)
    with torch.no_grad():
        if own == theirs:
            linear.weight.copy_(torch.eye(own))
        else:
            linear.weight.normal_(0.0, own**-0.5, generator=torch.Generator().manual_seed(seed))
    return linear
