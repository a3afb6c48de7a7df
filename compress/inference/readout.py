"""A model read out in float32: hidden states below the output head, and the head apart; and a checkpoint loaded so."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.base.errors import CompressError, InputError
from compress.base.machine import find_device
from compress.base.progress import say
from compress.model.files import resolve_model
from compress.model.framing import Framing, begun
from compress.model.lengths import context_tokens
from compress.model.load import find_dtype, load_model, load_tokenizer
from compress.model.parts import OutputHead, all_logits, check_output_head, hidden_states, output_head, why_not_finite
from compress.model.vocabulary import check_ids

_CHUNK_LOGITS = 1 << 24  # 64 MiB of float32


@dataclasses.dataclass(frozen=True)
class Readout:
    """A language model in memory whose forward pass is split at the output head.

    So the head runs only where a score is needed, and in float32 whatever the model's dtype unless asked otherwise:
    bf16 logits tie options that differ. `head` is None when the architecture does to its logits what `output_head`
    cannot express; then `states` are the model's own logits.
    """

    name: str
    """What the user calls the model."""
    model: Any
    head: OutputHead | None
    vocab_size: int

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> str:
        """`float32`, `bfloat16`, ..."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def chunk_tokens(self) -> int:
        """Positions whose [tokens, vocab] logits fit the chunk budget, which accelerators need more of to be busy."""
        budget = _CHUNK_LOGITS if self.device.type == "cpu" else 4 * _CHUNK_LOGITS
        return max(1, budget // self.vocab_size)

    def states(self, input_ids: Tensor, **inputs: Any) -> Tensor:
        """What the head turns into logits, [B, S, D], for `input_ids` [B, S] (padding, if any, on the right) and what
        else the model is to be given."""
        if self.head is None:
            return all_logits(self.model, input_ids, **inputs)
        return hidden_states(self.model, input_ids, **inputs)

    def logits(self, states: Tensor) -> Tensor:
        """float32 logits [N, V] of `states` [N, D]."""
        if self.head is None:
            return states.float()
        return self.head.logits(states.to(self.head.weight.dtype)).float()


@dataclasses.dataclass(frozen=True)
class Checkpoint(Readout):
    """A model folder, loaded and ready to be measured."""

    folder: Path
    tokenizer: Any
    prefix: tuple[int, ...] = ()
    """Token ids that a prompt begins with, though the tokenizer does not put them there by itself."""

    def prompt_ids(self, text: str) -> list[int]:
        """Token ids of a prompt: the tokenizer's own encoding, after `prefix` where it does not begin with it."""
        return begun(self.tokenizer(text)["input_ids"], self.prefix)

    @property
    def context(self) -> int | None:
        """Tokens that the model reads at most."""
        return context_tokens(self.model.config)

    def check_ids(self, ids: NDArray[np.int64]) -> None:
        """Refuse token ids that the model does not have; raises as `compress.model.vocabulary.check_ids`."""
        rows = min(self.vocab_size, self.model.get_input_embeddings().weight.shape[0])
        check_ids(ids, rows, self.tokenizer, self.name)


def read_out(model: Any, name: str, dtype: torch.dtype = torch.float32) -> Readout:
    """Split a model at its output head, which is to run in `dtype`, after comparing the two halves with the whole on a
    few tokens.

    Where the head is one that `output_head` cannot express, the user is told, and the model's own logits are used.

    Raises:
        InputError: the model's logits are NaN.
    """
    head: OutputHead | None
    try:
        check_output_head(model, name)
        head = output_head(model)
    except InputError:
        raise
    except CompressError as error:
        say(f"{error} Scoring falls back to the model's own logits.")
        head = None
    if head is not None:
        bias = None if head.bias is None else head.bias.detach().to(dtype)
        head = dataclasses.replace(head, weight=head.weight.detach().to(dtype), bias=bias)
    embeddings = model.get_output_embeddings()
    vocab_size = model.config.get_text_config().vocab_size if embeddings is None else embeddings.weight.shape[0]
    return Readout(name, model, head, int(vocab_size))


def load_checkpoint(
    name: str | Path, *, dtype: str = "auto", device: str | None = None, framing: Framing | None = None
) -> Checkpoint:
    """Load a folder or hub id, strictly and without remote code. What rows of text begin with, prompts begin with.

    `dtype` is as in `find_dtype`, `device` as in `find_device`.

    Raises:
        InputError: the model or its tokenizer cannot be used (see `compress.model.load`).
        UsageError: `device` is not a device of this machine.
    """
    folder = resolve_model(str(name))
    place = find_device(device)
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, dtype=find_dtype(dtype, folder, place), device=place)
    read = read_out(model, str(name))
    prefix = () if framing is None else framing.rows
    return Checkpoint(read.name, model, read.head, read.vocab_size, folder, tokenizer, prefix)


def require_numbers(scores: Tensor, readout: Readout) -> None:
    """Refuse scores that a model's logits make no number.

    Raises:
        InputError: one is NaN.
    """
    if scores.isnan().any():
        raise InputError(
            f"{readout.name} gives NaN for logits on some text, so it has no score: {why_not_finite(readout.model)}. "
            "Try --set eval.dtype=float32, or an earlier checkpoint of its training."
        )
