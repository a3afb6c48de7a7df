"""How much each block turns the hidden state: block influence and angular distance, in one pass over the text.

Hooks on the blocks see each block's input and output and keep float64 sums; of the activations only the last token's
live as long as a batch.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from compress.base.progress import Bar
from compress.model.blocks import Watch, watched
from compress.model.parts import decoder_layers, hidden_states


@dataclasses.dataclass(frozen=True, kw_only=True)
class Influence:
    """Means over the text, by block or by span of blocks."""

    block_influence: list[float]
    """1 - E[cos(h_i, h_{i+1})] over all tokens, h_i the input of block i and h_{i+1} its output (Men et al.,
    arXiv:2403.03853, equation 1)."""
    angular: list[float]
    """E[arccos(cos(h_i, h_{i+1}))] / pi over the last token of each row."""
    spans: list[float]
    """E[arccos(cos(h_l, h_{l+n}))] / pi over the last token of each row, for l = 0 .. L-n (Gromov et al.,
    arXiv:2403.17887, equation 7)."""


@torch.inference_mode()
def measure_influence(model: Any, batches: Iterable[Tensor], span: int, bar: Bar) -> Influence:
    """Run `model` over `batches` of ids [B, S] once; `span` is Gromov's n, the blocks between two states.

    A position whose state is zero before or after a block has no angle there and is left out of its mean.
    """
    _, layers = decoder_layers(model)
    device = next(model.parameters()).device
    sums = _Sums(len(layers), span)
    with watched(*_watches(layers, sums)):
        for ids in batches:
            hidden_states(model, ids.to(device))
            sums.end_batch()
            bar.advance(ids.numel())
    return Influence(
        block_influence=[1 - mean for mean in sums.cosine.means()],
        angular=sums.angular.means(),
        spans=sums.spans.means(),
    )


class _Means:
    """Float64 running sums and counts, one pair an entry."""

    def __init__(self, size: int) -> None:
        self._sums, self._counts = [0.0] * size, [0] * size

    def add(self, index: int, values: Tensor) -> None:
        """Take in the values that are numbers."""
        found = values[~values.isnan()]
        self._sums[index] += float(found.sum())
        self._counts[index] += found.numel()

    def means(self) -> list[float]:
        return [total / count if count else math.nan for total, count in zip(self._sums, self._counts, strict=True)]


class _Sums:
    """What the hooks keep."""

    def __init__(self, num_layers: int, span: int) -> None:
        self.cosine, self.angular = _Means(num_layers), _Means(num_layers)
        self.spans = _Means(num_layers - span + 1)
        self._span = span
        self._input = torch.empty(0)
        self._last: list[Tensor] = []

    def enter(self, index: int, hidden: Tensor) -> None:
        """Block `index` is given `hidden` [..., S, D]. Copied: a block may write over its input."""
        self._input = _float64(hidden)
        if index == 0:
            self._last.append(self._input[..., -1, :])

    def leave(self, index: int, hidden: Tensor) -> None:
        """Block `index` gave `hidden` [..., S, D]."""
        output = _float64(hidden)
        self.cosine.add(index, _cosine(self._input, output))
        self._last.append(output[..., -1, :].clone())

    def end_batch(self) -> None:
        """Compare the last tokens of the batch, all depths with each other's as needed, and forget them."""
        for means, span in ((self.angular, 1), (self.spans, self._span)):
            for start, (low, high) in enumerate(zip(self._last, self._last[span:], strict=False)):
                means.add(start, _cosine(low, high).clamp(-1, 1).arccos() / math.pi)
        self._last.clear()


def _float64(hidden: Tensor) -> Tensor:
    """A float64 copy; on the CPU where the device knows no float64 (MPS)."""
    return (hidden.cpu() if hidden.device.type == "mps" else hidden).to(torch.float64, copy=True)


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    """cos(x, y) over the last dimension; NaN where one of them is zero."""
    cosine: Tensor = (x * y).sum(-1) / (torch.linalg.vector_norm(x, dim=-1) * torch.linalg.vector_norm(y, dim=-1))
    return cosine


def _watches(layers: nn.ModuleList, sums: _Sums) -> Iterator[Watch]:
    """Each block's input and output, reported to `sums`."""
    for index, layer in enumerate(layers):
        yield Watch(layer, "input", functools.partial(sums.enter, index))
        yield Watch(layer, "output", functools.partial(sums.leave, index))
