"""Loss on text with a block skipped, each block in turn (leave one out).

With block r skipped everything before it computes what it computed with no block skipped. So a batch is run once,
each block's input is kept, and a trial starts from the kept input of its skipped block. Of a stack of L blocks that
leaves half the work. A model in which blocks pass each other more than the hidden state (shared keys and values) could
go wrong so; it is compared first, on a few tokens, bit by bit, and run in full where it differs.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from compress.base.progress import Bar
from compress.inference.likelihood import Likely, likely_tokens, token_divergences, token_losses
from compress.inference.readout import Readout
from compress.model.blocks import Forward, given, replaced
from compress.model.parts import decoder_layers

_CHECKED_TOKENS = 32


class Ablation:
    """A model that can be run with blocks skipped. Within `installed()` its blocks' forwards are ours.

    It is measured by its loss or, with `to_whole`, by its KL from the whole model.
    """

    def __init__(self, readout: Readout, *, to_whole: bool = False) -> None:
        self._readout, self._to_whole = readout, to_whole
        self._whole: dict[bytes, Likely] = {}
        self._layers = decoder_layers(readout.model)[1]
        self._inputs: list[Tensor | None] = [None] * len(self._layers)
        self._extras: list[tuple[Any, ...] | None] = [None] * len(self._layers)
        self._dropped: set[int] = set()
        self._start: int | None = None
        self.reuses_prefix = True

    @contextmanager
    def installed(self, text: Tensor) -> Iterator[None]:
        """Let blocks be skipped while the block runs, after finding out, on the start of `text` [B, S], whether trials
        may start in the middle."""
        with replaced(self._layers, self._forward_of):
            self._find_out(text[:1, :_CHECKED_TOKENS].to(self._readout.device))
            yield

    @torch.inference_mode()
    def leave_one_out(
        self, batches: Iterable[Tensor], candidates: Sequence[int], dropped: Collection[int], bar: Bar
    ) -> tuple[Tensor, list[Tensor]]:
        """Loss (or KL) at each predicted token, nats, float64 [T], without the `dropped` blocks, and without each of
        `candidates` besides."""
        base: list[Tensor] = []
        losses: list[list[Tensor]] = [[] for _ in candidates]
        for batch in batches:
            ids = batch.to(self._readout.device)
            whole = self._of_whole(ids) if self._to_whole else None
            self._dropped = set(dropped)
            base.append(self._run(ids, None, whole))
            for found, candidate in zip(losses, candidates, strict=True):
                found.append(self._run(ids, candidate, whole))
                bar.advance(ids.numel())
        self._inputs = [None] * len(self._layers)
        return torch.cat(base), [torch.cat(found) for found in losses]

    def _run(self, ids: Tensor, start: int | None, whole: Likely | None) -> Tensor:
        self._start = start
        return token_losses(self._readout, ids) if whole is None else token_divergences(self._readout, ids, whole)

    def _of_whole(self, ids: Tensor) -> Likely:
        """What the whole model expects, found once for each batch."""
        key = ids.cpu().numpy().tobytes()
        if key not in self._whole:
            self._dropped, self._start = set(), None
            self._whole[key] = likely_tokens(self._readout, ids)
        return self._whole[key]

    @torch.inference_mode()
    def _find_out(self, ids: Tensor) -> None:
        """Compare, for each block skipped, starting from its kept input with running all blocks on `ids` [1, S]."""
        self._dropped, self.reuses_prefix = set(), True
        self._start = None
        self._readout.states(ids)  # keeps each block's input
        for index in range(len(self._layers)):
            self._start, self.reuses_prefix = index, True
            resumed = self._readout.states(ids)
            self.reuses_prefix = False  # and stays so when this trial, run in full, says something else
            if not torch.equal(resumed, self._readout.states(ids)):
                return
        self.reuses_prefix = True

    def _forward_of(self, index: int, own: Forward) -> Forward:
        """What block `index` does instead of its `own`: a plain run keeps its input, a trial skips it where it should.

        `_start` is None in a plain run, and in a trial the block that it skips besides the `_dropped` ones.
        """

        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden, start = given(args, kwargs), self._start
            if start is None:
                self._inputs[index] = hidden  # a plain run, whose states trials start from
            elif self.reuses_prefix and index <= start:
                # Nothing need run up to the skipped block: what it was given before, the next one is given now.
                kept = hidden if index < start else self._inputs[index]
                assert kept is not None
                return self._like_output(index, kept)
            skipped = index in self._dropped or index == start
            if skipped and self.reuses_prefix:
                return self._like_output(index, hidden)
            # Where blocks pass each other more than the state, a skipped one runs for the rest of what it gives, and
            # may write over its input meanwhile.
            kept = hidden.clone() if skipped else hidden
            output = own(*args, **kwargs)
            self._extras[index] = tuple(output[1:]) if isinstance(output, tuple | list) else None
            return self._like_output(index, kept) if skipped else output

        return forward

    def _like_output(self, index: int, hidden: Tensor) -> Any:
        """`hidden` as block `index` returns it: alone, or with what it last returned beside it."""
        extras = self._extras[index]
        return hidden if extras is None else (hidden, *extras)
