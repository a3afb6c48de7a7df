"""Which tokens of a row are alike, in the student's blocks and in the teacher's: the term `similarity`.

Of a row's n labelled places take the Gram matrix of the unit hidden states, G[a, b] = cos(h_a, h_b), [n, n]; the term
is the mean over pairs of blocks and labels of mean((G_student - G_teacher)^2) of the label's row. It needs no
projection, whatever the widths. Tung and Mori, arXiv:1907.09682, there between the pictures of a batch.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.distill.config import DistillConfig, SimilarityConfig
from compress.distill.objective.hidden import needs_of, require_teacher, times
from compress.distill.objective.pairs import BlockPairs, block_pairs
from compress.distill.objective.part import Outcome, Pair
from compress.distill.objective.schedules import Setting
from compress.distill.objective.signals import Needs, Signals
from compress.distill.rows.batch import MicroBatch


@dataclasses.dataclass(frozen=True)
class Similarity:
    """The term for some pairs of blocks."""

    pairs: BlockPairs
    names: tuple[str, ...] = ("similarity",)
    learned: nn.Module | None = None

    @property
    def needs(self) -> Needs:
        """The outputs of the blocks in the pairs."""
        return needs_of(self.pairs)

    def __call__(
        self, student: Signals, teacher: Signals | None, batch: MicroBatch, num_tokens: float, setting: Setting
    ) -> Outcome:
        """See `Part`."""
        assert teacher is not None
        lengths = batch.row_lengths
        sums = [
            _GramDistance.apply(student.blocks[own], teacher.blocks[theirs], lengths)  # type: ignore[no-untyped-call]
            for own, theirs in self.pairs
        ]
        raw = torch.stack(sums).sum() / (len(self.pairs) * num_tokens)
        return Outcome(setting.weights["similarity"] * raw, raw.detach()[None])


class _GramDistance(torch.autograd.Function):
    """Sum over rows of n mean((G_s - G_t)^2), with its gradient; there is one row's Gram matrix at a time.

    With the unit states u, d / du_a = 4 / n sum_b (G_s - G_t)[a, b] u_b.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, wanted: Tensor, lengths: tuple[int, ...]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        start = 0
        with torch.autocast(hidden.device.type, enabled=False):
            for length in lengths:
                place = slice(start, start + length)
                start += length
                if not length:
                    continue
                norms = torch.linalg.vector_norm(hidden[place].float(), dim=-1, keepdim=True).clamp(min=1e-12)
                unit, other = hidden[place].float() / norms, functional.normalize(wanted[place].float(), dim=-1)
                gap = torch.addmm(other @ other.T, unit, unit.T, beta=-1)
                total += gap.square().sum(dtype=torch.float64) / length
                if gradient is not None:
                    slope = (gap @ unit).mul_(4 / length)
                    slope -= (slope * unit).sum(-1, keepdim=True) * unit
                    gradient[place] = slope / norms
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, None, None]:
        return times(ctx.saved_tensors[0], upstream[0]), None, None


def similarity(config: DistillConfig, pair: Pair) -> Similarity | None:
    """The term as the options ask; None where it counts nothing.

    Raises:
        UsageError: there is no teacher, or pairs that cannot be.
    """
    if config.weights is None or config.weights.similarity is None:
        return None
    require_teacher("similarity", pair)
    return Similarity(block_pairs("similarity", config.similarity or SimilarityConfig(), pair))
