"""Text that runs through a model a stretch of blocks at a time, and stops where something is to be seen or changed.

What a block is given besides the hidden state (masks, rotary embeddings, by type of layer) its own model makes: each
stretch is a forward pass of the model in which the blocks before it and those after it are passed by, and its first one
is given the state that was kept. So text goes through the blocks once, however often it stops. Where blocks pass each
other more than the hidden state that would go wrong; it is tried first, on a few tokens, bit by bit, and a model that
differs runs as a whole for each stop.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from compress.model.blocks import Forward, Watch, given, replaced, returned, watched, with_given
from compress.model.parts import decoder_layers, hidden_states

_TRIED_TOKENS = 32


class Stream:
    """Batches of ids [B, S] in a model, their hidden states on the host from one stop to the next."""

    def __init__(self, model: Any, batches: Sequence[Tensor]) -> None:
        self._model, self._layers = model, decoder_layers(model)[1]
        self._extras: list[tuple[Any, ...] | None] = [None] * len(self._layers)
        self._input = self._output = torch.empty(0)
        self.resumes = False
        self._restart([batches[0][:1, :_TRIED_TOKENS]])
        self.resumes = self._may_stop()
        self._restart(batches)

    def outputs(self, block: int, *, again: bool = False) -> Iterator[Tensor]:
        """The output [B, S, D] of a block for each batch, run on from where the last call stopped.

        The next call goes on after the block, or with it where it is to run `again`.
        """
        self._stop = block
        for number, ids in enumerate(self._batches):
            self._state = self._states[number]
            with replaced(self._layers, self._forward_of):
                hidden_states(self._model, ids.to(self._model.device))
            if self.resumes:
                self._states[number] = (self._input if again else self._output).cpu()
            yield self._output
        self._start = block if again else block + 1

    def _restart(self, batches: Sequence[Tensor]) -> None:
        self._batches, self._start, self._stop = batches, 0, 0
        self._states: list[Tensor | None] = [None] * len(batches)

    def _may_stop(self) -> bool:
        """Whether stopping after every block changes no bit of what the blocks return."""
        whole: list[Tensor] = []
        with watched(*(Watch(layer, "output", lambda hidden: whole.append(hidden.clone())) for layer in self._layers)):
            next(self.outputs(0))
        if any(extra is not None for extras in self._extras for extra in extras or ()):
            return False
        self.resumes = True
        try:
            return all(torch.equal(next(iter([*self.outputs(i)])), expected) for i, expected in enumerate(whole))
        except Exception:  # what a block lacks that one passed by would have left for it, each type says its own way
            return False

    def _forward_of(self, index: int, own: Forward) -> Forward:
        """What block `index` does instead of its `own`."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden = given(args, kwargs)
            if self.resumes and not self._start <= index <= self._stop:
                extras = self._extras[index]
                return hidden if extras is None else (hidden, *extras)
            if self.resumes and index == self._start and self._state is not None:
                hidden = self._state.to(hidden.device)
                args, kwargs = with_given(hidden, args, kwargs)
            if index == self._stop:
                self._input = hidden.clone()  # a block may write over its input
            output = own(*args, **kwargs)
            self._extras[index] = tuple(output[1:]) if isinstance(output, tuple | list) else None
            if index == self._stop:
                self._output = returned(output).clone()
            return output

        return forward
