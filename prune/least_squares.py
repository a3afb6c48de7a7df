"""Least squares with a ridge, from sums over tokens; `compress.prune.repair` has the formula."""

import torch
from torch import Tensor, nn

RIDGES = tuple(10 ** (half / 2) for half in range(-10, 1))
"""Those that are tried."""


class Sums:
    """Sums over tokens that least squares is solved from, in float64: a^T a, a^T (h - g), |h - g|^2 and |h|^2."""

    def __init__(self, linear: nn.Linear) -> None:
        size, device = linear.in_features, linear.weight.device
        self.gram = torch.zeros(size, size, dtype=torch.float64, device=device)
        self.moment = torch.zeros(size, linear.out_features, dtype=torch.float64, device=device)
        self.gap = self.scale = 0.0

    def add(self, inputs: Tensor, found: Tensor, wanted: Tensor) -> None:
        """Take in a [tokens, F], g and h [tokens, D], float32, as their products are."""
        difference = wanted - found
        self.gram += inputs.T @ inputs
        self.moment += inputs.T @ difference
        self.gap += float(difference.double().square().sum())
        self.scale += float(wanted.double().square().sum())

    def take_in(self, other: "Sums") -> None:
        """Add the sums over other tokens."""
        self.gram += other.gram
        self.moment += other.moment
        self.gap += other.gap
        self.scale += other.scale

    def solve(self, ridge: float) -> Tensor:
        """C^T [F, D]."""
        pull = ridge * self.gram.diagonal().mean() * torch.eye(len(self.gram), dtype=self.gram.dtype).to(self.gram)
        solved: Tensor = torch.linalg.solve(self.gram + pull, self.moment)
        return solved

    def left(self, change: Tensor) -> float:
        """|h - g - a C^T|^2."""
        return self.gap + float((change * (self.gram @ change - 2 * self.moment)).sum())


def best_ridge(fitted: Sums, heldout: Sums) -> float:
    """Of RIDGES the one whose map, solved from some tokens, errs least on others.

    With a^T a = V diag(s) V^T, each map is V (diag(s) + ridge m I)^-1 V^T a^T (h - g).
    """
    values, vectors = torch.linalg.eigh(fitted.gram)
    moment, mean = vectors.T @ fitted.moment, values.mean()

    def error(ridge: float) -> float:
        return heldout.left(vectors @ (moment / (values + ridge * mean)[:, None]))

    return min(RIDGES, key=error)
