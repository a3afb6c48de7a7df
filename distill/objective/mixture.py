"""The soft loss against several teachers: one distribution made of theirs, a few hundred tokens at a time.

With weights w_i that add up to 1 at each place it is sum w_i softmax(z_i / T), or softmax(sum w_i z_i / T).
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from compress.distill.objective.tiles import at_least_fp32
from compress.model.parts import OutputHead

_TOKENS = 512
_LIVE_TENSORS = 4


class Voice(NamedTuple):
    """One teacher at the M places of a micro-batch that have a label."""

    hidden: Tensor
    """[M, D] after the final norm."""
    head: OutputHead
    """What makes logits of them, for the token ids that all models have."""
    weights: Tensor
    """[M] what it counts at each place, at least fp32; 1 over all teachers."""


class Mixture(NamedTuple):
    """Several teachers as one."""

    voices: tuple[Voice, ...]
    of: Literal["probabilities", "logits"]

    def cast(self, dtype_of: Callable[[Tensor, Tensor], torch.dtype]) -> "Mixture":
        """The same without gradients, in the dtype that is found for hidden states and weight."""

        def cast(voice: Voice) -> Voice:
            dtype, weight = dtype_of(voice.hidden, voice.head.weight), voice.head.weight.detach()
            head = dataclasses.replace(voice.head, weight=weight.to(dtype))
            return voice._replace(hidden=voice.hidden.detach().to(dtype), head=head)

        return self._replace(voices=tuple(map(cast, self.voices)))

    def write_logits(self, rows: slice, temperature: float, out: Tensor) -> Tensor:
        """Write logits z of some of the places into `out` [R, V], so that softmax(z / T) is the mixture at T."""
        for start in range(0, len(out), _TOKENS):
            part = out[start : start + _TOKENS]
            first = rows.start + start
            part.copy_(self._logits(slice(first, first + len(part)), temperature))
        return out

    def _logits(self, rows: slice, temperature: float) -> Tensor:
        total = self._part(self.voices[0], rows, temperature)
        for voice in self.voices[1:]:
            add = torch.add if self.of == "logits" else torch.logaddexp
            add(total, self._part(voice, rows, temperature), out=total)
        return total if self.of == "logits" else total.mul_(temperature)

    def _part(self, voice: Voice, rows: slice, temperature: float) -> Tensor:
        """What a teacher adds: w z, or log (w softmax(z / T))."""
        z = dataclasses.replace(voice.head, softcap=None).logits(voice.hidden[rows])
        z = z.to(at_least_fp32(z))
        if (cap := voice.head.softcap) is not None:
            z.div_(cap).tanh_().mul_(cap)
        share = voice.weights[rows, None].to(z.dtype)
        return z.mul_(share) if self.of == "logits" else z.div_(temperature).log_softmax(-1).add_(share.log())


def mixing_bytes(tokens: int, vocabulary: int) -> int:
    """The most bytes that the mixing of a chunk of so many tokens holds beside the chunk."""
    return _LIVE_TENSORS * 4 * min(tokens, _TOKENS) * vocabulary
