"""Tokens drawn from logits, each answer by random numbers of its own."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Sampler:
    """Draws the tokens of the answers of one batch; see `compress.inference.decoding.Choose`.

    The random number of token t of answer i comes from (seed, name of the answer, t) alone: what is decoded beside it
    has no part in it but for the rounding of the logits.
    """

    def __init__(self, temperature: float, top_p: float, seed: int, names: Sequence[str]) -> None:
        self._temperature, self._top_p = temperature, top_p
        self._draws = [generator(seed, name) for name in names]

    def __call__(self, logits: Tensor, answers: Sequence[int]) -> Tensor:
        """Tokens [B] of float32 logits [B, V] by inverting the distribution's cumulative sum, in float64."""
        if self._temperature == 0:
            return logits.argmax(dim=-1)
        uniform = torch.tensor([[self._draws[answer].random()] for answer in answers], dtype=torch.float64)
        p = (logits.double() / self._temperature).softmax(dim=-1)
        if self._top_p == 1:
            return _places(p, uniform).squeeze(1)
        p, tokens = p.sort(dim=-1, descending=True, stable=True)
        before = p.cumsum(dim=-1) - p
        return tokens.gather(1, _places(torch.where(before < self._top_p, p, 0.0), uniform)).squeeze(1)


def _places(p: Tensor, uniform: Tensor) -> Tensor:
    """Where [B, 1] numbers of 0 to 1 [B, 1] fall in the cumulative sums of p [B, V], which need not add up to 1."""
    total = p.cumsum(dim=-1)
    places = torch.searchsorted(total, uniform.to(total.device) * total[:, -1:], right=True)
    return places.clamp(max=p.shape[-1] - 1)


def generator(seed: int, name: str) -> np.random.Generator:
    """Random numbers of what has this name."""
    content = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return np.random.default_rng(np.frombuffer(content, dtype=np.uint32))
