"""The soft loss against a teacher that is known by a few token ids: draws of its distribution, or its most likely ones.

With weights w of the ids, which add up to 1, soft = sum w (-log q) - H, and its gradient with respect to the logits is
q - w: of w = counts / N of N draws from p, both have the expectation of KL(p || q)'s, if H is p's entropy (Anshumann et
al., arXiv:2503.16870). Temperature 1.
"""

from typing import NamedTuple

from torch import Tensor

from compress.distill.objective.divergences import softcap, sum_dtype
from compress.distill.objective.tiles import TilePass


class Sparse(NamedTuple):
    """What is known of the teacher's distribution at N places, K ids each."""

    ids: Tensor
    """[N, K] token ids, int64."""
    weights: Tensor
    """[N, K] fp32, which add up to 1; 0 for what only fills up a place."""
    entropy: Tensor
    """[N] fp32, nats: what is taken off, so that the best student has a soft loss of 0 in expectation."""

    def take(self, rows: slice) -> "Sparse":
        """Of some of the places."""
        return Sparse(self.ids[rows], self.weights[rows], self.entropy[rows])


def sparse_pass(
    plain: TilePass, logits: Tensor, target: Sparse, labels: Tensor, *, alpha: float, cap: float | None, gradient: bool
) -> Tensor:
    """[soft, hard] sums of a chunk of uncapped logits [C, V], over which d(alpha soft + (1 - alpha) hard) is written.

    `plain` makes the hard loss alone: its sum gives that of log sum exp(z), and its gradient q - y is what both share.
    """
    dtype = sum_dtype(logits.device)
    at_ids, slope = softcap(logits.gather(1, target.ids).to(dtype), cap)
    at_label, label_slope = softcap(logits.gather(1, labels[:, None]).to(dtype), cap)
    sums = plain(logits, None, labels)
    weights = target.weights.to(dtype)
    sums[0] = sums[1] + at_label.sum() - (weights * at_ids).sum() - target.entropy.sum(dtype=dtype)
    if gradient:
        weights = weights if slope is None else weights * slope
        ones = at_label.new_ones(at_label.shape) if label_slope is None else label_slope
        logits.scatter_add_(1, labels[:, None], (alpha * ones).to(logits.dtype))
        logits.scatter_add_(1, target.ids, (-alpha * weights).to(logits.dtype))
    return sums
