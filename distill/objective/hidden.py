"""Distances between the outputs of the student's blocks and the teacher's: the term `hidden`.

L = mean over pairs (i, j) and labels of d(P_i h_i, t_j), with h_i the output of the student's block i and t_j of the
teacher's block j, before the final norm where they are the last. d is 1 - cos(a, b) or mean((a - b)^2) over the width,
of a = LN(P h) and b = LN(t), LayerNorm without gain and bias: the first as in llama-distillation-torchtune, the second,
with a learned P, after FitNets (arXiv:1412.6550) and TinyBERT (arXiv:1909.10351).
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.base.errors import UsageError
from compress.distill.config import DistillConfig, HiddenConfig
from compress.distill.objective.pairs import BlockPairs, block_pairs
from compress.distill.objective.part import Outcome, Pair
from compress.distill.objective.schedules import Setting
from compress.distill.objective.signals import Needs, Signals
from compress.distill.rows.batch import MicroBatch

_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class HiddenStates:
    """The term for some pairs of blocks; with `learned`, a projection for each of them."""

    pairs: BlockPairs
    config: HiddenConfig
    learned: nn.ModuleList | None
    names: tuple[str, ...] = ("hidden",)

    @property
    def needs(self) -> Needs:
        """The outputs of the blocks in the pairs."""
        return needs_of(self.pairs)

    def __call__(
        self, student: Signals, teacher: Signals | None, batch: MicroBatch, num_tokens: float, setting: Setting
    ) -> Outcome:
        """See `Part`."""
        assert teacher is not None
        sums = []
        for number, (own, theirs) in enumerate(self.pairs):
            hidden = student.blocks[own]
            if self.learned is not None:
                hidden = self.learned[number](hidden)
            sums.append(_Distance.apply(hidden, teacher.blocks[theirs], self.config))  # type: ignore[no-untyped-call]
        raw = torch.stack(sums).sum() / (len(self.pairs) * num_tokens)
        return Outcome(setting.weights["hidden"] * raw, raw.detach()[None])


class _Distance(torch.autograd.Function):
    """Sum over places of d, with its gradient made at once: of all that is in between nothing is kept."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, wanted: Tensor, config: HiddenConfig) -> Tensor:
        wanted_gradient = ctx.needs_input_grad[0]
        with torch.set_grad_enabled(wanted_gradient), torch.autocast(hidden.device.type, enabled=False):
            states = hidden.detach().requires_grad_(wanted_gradient)
            total = distances(states, wanted, config).sum(dtype=torch.float64)
        ctx.save_for_backward(torch.autograd.grad(total, states)[0] if wanted_gradient else None)
        return total.detach()

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, None, None]:
        return times(ctx.saved_tensors[0], upstream[0]), None, None


def times(gradient: Tensor | None, upstream: Tensor) -> Tensor | None:
    """A gradient that was made at once, by what comes from above it."""
    return None if gradient is None else gradient * upstream.to(gradient.dtype)


def needs_of(pairs: BlockPairs) -> Needs:
    """What a part needs that leaves the gradient of these blocks' outputs to autograd."""
    own, theirs = (tuple(sorted(set(blocks))) for blocks in zip(*pairs, strict=True))
    return Needs(student_blocks=own, teacher_blocks=theirs, autograd=True)


def distances(hidden: Tensor, wanted: Tensor, config: HiddenConfig) -> Tensor:
    """d of each place [M], fp32, between states [M, D] of any floating dtype."""
    hidden, wanted = hidden.to(torch.float32), wanted.to(torch.float32)
    if config.layer_norm:
        hidden, wanted = (functional.layer_norm(states, states.shape[-1:], eps=_EPSILON) for states in (hidden, wanted))
    if config.distance == "cosine":
        return 1 - functional.cosine_similarity(hidden, wanted, dim=-1)
    return (hidden - wanted).square().mean(-1)


def hidden_states(config: DistillConfig, pair: Pair) -> HiddenStates | None:
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
    return HiddenStates(pairs, asked, learned)


def require_teacher(term: str, pair: Pair) -> Any:
    """The teacher's config; raises UsageError where a term compares with a teacher that there is not."""
    if pair.teacher is None:
        raise UsageError(f"weights.{term} compares with a teacher, and there is none: name one, or leave it out.")
    return pair.teacher


def _projection(own: int, theirs: int, seed: int) -> nn.Linear:
    """Without bias: the identity where widths agree, else drawn so that lengths are kept on the mean."""
    linear = nn.Linear(own, theirs, bias=False)
    with torch.no_grad():
        if own == theirs:
            linear.weight.copy_(torch.eye(own))
        else:
            linear.weight.normal_(0.0, own**-0.5, generator=torch.Generator().manual_seed(seed))
    return linear
