"""Next-token loss of a model on rows of token ids, in chunks of positions: no [tokens, vocabulary] tensor exists."""

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from compress.base.errors import CompressError
from compress.model.parts import OutputHead, check_output_head, hidden_states, output_head

_CHUNK_LOGITS = 1 << 25  # 128 MiB of float32


class TextLoss:
    """Summed next-token cross-entropy of a model; logits are float32, the sum float64, on the CPU.

    Where the head is one that `output_head` cannot express, the model's own logits are used.
    """

    def __init__(self, model: Any, name: str) -> None:
        self._model = model
        self._head: OutputHead | None = None
        try:
            check_output_head(model, name)
        except CompressError:
            return
        head = output_head(model)
        bias = None if head.bias is None else head.bias.detach().float()
        self._head = dataclasses.replace(head, weight=head.weight.detach().float(), bias=bias)

    def states(self, ids: Tensor) -> Tensor:
        """What the head turns into logits, [B, S, D], for `ids` [B, S]; the logits themselves where it cannot."""
        if self._head is None:
            logits: Tensor = self._model(input_ids=ids, use_cache=False).logits
            return logits
        return hidden_states(self._model, ids)

    def __call__(self, ids: Tensor) -> Tensor:
        """Sum over `ids` [B, S] of -log p(x_t | x_<t), nats, for t = 1 .. S-1 of each row; a float64 scalar."""
        states = self.states(ids)
        labels = ids[:, 1:].flatten()
        states = states[:, :-1].flatten(0, 1)
        vocabulary = states.shape[1] if self._head is None else len(self._head.weight)
        step = max(1, _CHUNK_LOGITS // vocabulary)
        total = torch.zeros((), dtype=torch.float64)
        for start in range(0, len(states), step):
            chunk = slice(start, start + step)
            loss: Tensor = checkpoint(self._chunk, states[chunk], labels[chunk], use_reentrant=False)
            total = total + loss
        return total

    def _chunk(self, states: Tensor, labels: Tensor) -> Tensor:
        logits = states.float() if self._head is None else self._head.logits(states.float())
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none").cpu().double().sum()
