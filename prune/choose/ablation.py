"""Loss on text with a block skipped, each block in turn (leave one out), or run again where it was skipped.

With block r changed so everything before it computes what it computed without the change. So a batch is run once,
each block's input is kept, and a trial starts from the kept input of its block. Of a stack of L blocks that
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
from compress.model.blocks import Forward, given, replaced, with_given
from compress.model.parts import decoder_layers

_CHECKED_TOKENS = 32


class Ablation:
    """A model that can be run with blocks skipped. Within `installed()` its blocks' forwards are ours.

    It is measured by its loss or, with `reference`, by its KL from a reference: what that expects of batches of ids, by
    their bytes. Of a batch that is not in it, the reference is the model with no block skipped.
    """

    def __init__(self, readout: Readout, *, reference: dict[bytes, Likely] | None = None) -> None:
        self._readout, self._reference = readout, reference
        self._layers = decoder_layers(readout.model)[1]
        self._inputs: list[Tensor | None] = [None] * len(self._layers)
        self._extras: list[tuple[Any, ...] | None] = [None] * len(self._layers)
        self._dropped: set[int] = set()
        self._changed: int | None = None
        self.reuses_prefix = True

    @contextmanager
    def installed(self, text: Tensor) -> Iterator[None]:
        """Let blocks be skipped while the block runs, after finding out, on the start of `text` [B, S], whether trials
        may start in the middle."""
        with replaced(self._layers, self._forward_of):
            self._find_out(text[:1, :_CHECKED_TOKENS].to(self._readout.device))
            yield

    @torch.inference_mode()
    def change_one(
        self, batches: Iterable[Tensor], candidates: Sequence[int], dropped: Collection[int], bar: Bar
    ) -> tuple[Tensor, list[Tensor]]:
        """Loss (or KL) at each predicted token, nats, float64 [T], without the `dropped` blocks, and for each of
        `candidates` without that besides, or with it where it is one of the dropped."""
        base: list[Tensor] = []
        losses: list[list[Tensor]] = [[] for _ in candidates]
        for batch in batches:
            ids = batch.to(self._readout.device)
            expected = self._expected(ids)
            self._dropped = set(dropped)
            base.append(self._run(ids, None, expected))
            for found, candidate in zip(losses, candidates, strict=True):
                found.append(self._run(ids, candidate, expected))
                bar.advance(ids.numel())
        self._inputs = [None] * len(self._layers)
        return torch.cat(base), [torch.cat(found) for found in losses]

    def _run(self, ids: Tensor, changed: int | None, expected: Likely | None) -> Tensor:
        self._changed = changed
        return token_losses(self._readout, ids) if expected is None else token_divergences(self._readout, ids, expected)

    def _expected(self, ids: Tensor) -> Likely | None:
        """What the reference expects, of the whole model found once for each batch."""
        if self._reference is None:
            return None
        key = batch_key(ids)
        if key not in self._reference:
            self._dropped, self._changed = set(), None
            self._reference[key] = likely_tokens(self._readout, ids)
        return self._reference[key]

    @torch.inference_mode()
    def _find_out(self, ids: Tensor) -> None:
        """Compare, for each block skipped, starting from its kept input with running all blocks on `ids` [1, S]."""
        self._dropped, self.reuses_prefix = set(), True
        self._changed = None
        self._readout.states(ids)  # keeps each block's input
        for index in range(len(self._layers)):
            self._changed, self.reuses_prefix = index, True
            resumed = self._readout.states(ids)
            self.reuses_prefix = False  # and stays so when this trial, run in full, says something else
            if not torch.equal(resumed, self._readout.states(ids)):
                return
        self.reuses_prefix = True

    def _forward_of(self, index: int, own: Forward) -> Forward:
        """What block `index` does instead of its `own`: a plain run keeps its input, a trial skips it where it should.

        `_changed` is None in a plain run, and in a trial the block that it skips besides the `_dropped` ones, or runs
        though it is one of these.
        """

        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden, changed = given(args, kwargs), self._changed
            if changed is None:
                self._inputs[index] = hidden  # a plain run, whose states trials start from
            elif self.reuses_prefix and index < changed:
                return self._like_output(index, hidden)  # nothing need run up to the block that is changed
            elif self.reuses_prefix and index == changed:
                kept = self._inputs[index]
                assert kept is not None
                hidden, (args, kwargs) = kept, with_given(kept, args, kwargs)
            skipped = (index in self._dropped) != (index == changed)
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


def batch_key(ids: Tensor) -> bytes:
    """What a batch of ids is known by."""
    return ids.cpu().numpy().tobytes()
