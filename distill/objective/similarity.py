"""Which tokens of a row are alike, in the student's blocks and in the teacher's: the term `similarity`.

Of a row's n labelled places take the Gram matrix of the unit hidden states, G[a, b] = cos(h_a, h_b), [n, n]; the term
is the mean over pairs of blocks and labels of mean((G_student - G_teacher)^2) of the label's row. It needs no
projection, whatever the widths. Tung and Mori, arXiv:1907.09682, there between the pictures of a batch.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from compress.distill.config import DistillConfig, SimilarityConfig
from compress.distill.objective.between_blocks import BetweenBlocks, require_teacher, times
from compress.distill.objective.divergences import sum_dtype
from compress.distill.objective.pairs import block_pairs
from compress.distill.objective.part import Pair


class _GramDistance(torch.autograd.Function):
    """Sum over rows of n mean((G_s - G_t)^2), with its gradient; there is one row's Gram matrix at a time.

    With the unit states u, d / du_a = 4 / n sum_b (G_s - G_t)[a, b] u_b.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, wanted: Tensor, lengths: tuple[int, ...]) -> Tensor:
        dtype = sum_dtype(hidden.device)
        total = torch.zeros((), dtype=dtype, device=hidden.device)
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
                total += gap.square().sum(dtype=dtype) / length
                if gradient is not None:
                    slope = (gap @ unit).mul_(4 / length)
                    slope -= (slope * unit).sum(-1, keepdim=True) * unit
                    gradient[place] = slope / norms
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, None, None]:
        return times(ctx.saved_tensors[0], upstream[0]), None, None


def similarity(config: DistillConfig, pair: Pair) -> BetweenBlocks | None:
    """The term as the options ask; None where it counts nothing.

    Raises:
        UsageError: there is no teacher, or pairs that cannot be.
    """
    if config.weights is None or config.weights.similarity is None:
        return None
    require_teacher("similarity", pair)
    return BetweenBlocks(
        "similarity",
        block_pairs("similarity", config.similarity or SimilarityConfig(), pair),
        lambda hidden, wanted, batch: _GramDistance.apply(hidden, wanted, batch.row_lengths),  # type: ignore[no-untyped-call]
    )
