"""A checkpoint ready to be measured: model, tokenizer, and logits that are always float32."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.base.errors import CompressError, InputError
from compress.base.machine import find_device
from compress.base.progress import say
from compress.model.files import resolve_model
from compress.model.load import find_dtype, load_model, load_tokenizer
from compress.model.parts import OutputHead, check_output_head, hidden_states, output_head

_CHUNK_LOGITS = 1 << 24  # 64 MiB of float32


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A loaded causal LM.

    `states` and `logits` split the forward pass at the output head, so that the head runs only where a score is
    needed and in float32 whatever the model's dtype: bf16 logits tie options that differ. `head` is None when the
    architecture does to its logits what `output_head` cannot express; then `states` are the model's own logits.
    """

    name: str
    folder: Path
    model: Any
    tokenizer: Any
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
        """Positions whose [tokens, vocab] logits fit the chunk budget."""
        return max(1, _CHUNK_LOGITS // self.vocab_size)

    def states(self, input_ids: Tensor) -> Tensor:
        """What the head turns into logits, [B, S, D], for `input_ids` [B, S] (padding, if any, on the right)."""
        if self.head is None:
            logits: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
            return logits
        return hidden_states(self.model, input_ids)

    def logits(self, states: Tensor) -> Tensor:
        """float32 logits [N, V] of `states` [N, D]."""
        return states.float() if self.head is None else self.head.logits(states.float())


def require_numbers(scores: Tensor, checkpoint: Checkpoint) -> None:
    """Refuse scores that a model's logits make no number.

    Raises:
        InputError: one is NaN.
    """
    if scores.isnan().any():
        raise InputError(
            f"{checkpoint.name} gives NaN for logits on some text, so it has no score: its weights hold NaN, or values "
            f"too large for {checkpoint.dtype}. Try --set eval.dtype=float32, or an earlier checkpoint of its training."
        )


def load_checkpoint(name: str | Path, *, dtype: str = "auto", device: str | None = None) -> Checkpoint:
    """Load a folder or hub id, strictly and without remote code.

    `dtype` is as in `find_dtype`, `device` as in `find_device`.

    Raises:
        InputError: the model or its tokenizer cannot be used (see `compress.model.load`).
        UsageError: `device` is not a device of this machine.
    """
    folder = resolve_model(str(name))
    place = find_device(device)
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, dtype=find_dtype(dtype, folder, place), device=place)
    head: OutputHead | None
    try:
        check_output_head(model, str(name))
        head = output_head(model)
    except CompressError as error:
        say(f"{error} Scoring falls back to the model's own logits.")
        head = None
    if head is not None:
        bias = None if head.bias is None else head.bias.detach().float()
        head = dataclasses.replace(head, weight=head.weight.detach().float(), bias=bias)
    vocab_size = int(model.get_output_embeddings().weight.shape[0])
    return Checkpoint(str(name), folder, model, tokenizer, head, vocab_size)
