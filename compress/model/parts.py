"""What a language model is made of: its stack of layers, last hidden states and output head."""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compress.base.errors import CompressError, InputError, reason_of
from compress.model.kinds import is_masked, model_class, sees_images
from compress.model.lengths import context_tokens
from compress.model.remote_code import trusted

_STACKS = (
    "model.layers", "model.language_model.layers", "language_model.model.layers", "transformer.h",
    "transformer.blocks", "transformer.layers", "transformer.layer", "model.decoder.layers", "backbone.blocks",
    "model.text_model.layers",
)  # fmt: skip
_STACKS_OF_BASE = ("layers", "blocks", "encoder.layer", "encoder.layers", "transformer.layer", "decoder.layers")
"""The same, below the submodule that a model class calls its base."""


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The stack of transformer layers and its dotted name, e.g. `("model.layers", ModuleList)`.

    Raises:
        InputError: the model keeps its layers where we do not know to look.
    """
    base = getattr(model, "base_model_prefix", "")
    names = (*_STACKS, *(f"{base}.{tail}" for tail in _STACKS_OF_BASE))
    for name in names:
        try:
            found = model.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(found, nn.ModuleList):
            return name, found
    raise InputError(f"{type(model).__name__} keeps its layers in none of {', '.join(names)}.")


def empty_model(config: Any) -> Any:
    """The architecture of a config on the meta device: shapes and names, no memory."""
    with torch.device("meta"):
        return model_class(config).from_config(config, trust_remote_code=trusted())


def why_no_model(error: Exception) -> str:
    """What transformers says of a config that makes no language model, without its list of those that do."""
    return reason_of(str(error).partition(" for this kind of AutoModel")[0])


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, tied ones counted once."""
    return sum(p.numel() for p in model.parameters())


def vision_parameters(model: Any) -> frozenset[str]:
    """Names of the parameters that are no part of the language model: of tower and projector; none where it sees no
    images."""
    if not sees_images(model.config):
        return frozenset()
    inside = decoder_layers(model)[0].rpartition(".")[0] + "."
    head = {id(parameter) for parameter in model.get_output_embeddings().parameters()}
    named = model.named_parameters(remove_duplicate=False)
    return frozenset(name for name, each in named if not name.startswith(inside) and id(each) not in head)


@dataclasses.dataclass(frozen=True)
class OutputHead:
    """How a language model turns last hidden states h [N, D] into logits [N, V].

    z = scale * (h W^T + bias); with a cap c, c * tanh(z / c) (Gemma 2, arXiv:2408.00118, section 2).
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def to(self, device: torch.device) -> "OutputHead":
        """The same with its tensors on a device."""
        bias = None if self.bias is None else self.bias.to(device)
        return dataclasses.replace(self, weight=self.weight.to(device), bias=bias)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] in the dtype of `hidden` [N, D]."""
        bias = None if self.bias is None else self.bias.to(hidden.dtype)
        logits = nn.functional.linear(hidden, self.weight.to(hidden.dtype), bias)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


def output_head(model: Any) -> OutputHead:
    """The model's head with its logit scaling (Cohere, Granite, Falcon-H1) and soft-capping (Gemma)."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    if head is None:
        raise InputError(f"{type(model).__name__} has no output head.")
    scale = 1.0
    for name, invert in (("logit_scale", False), ("logits_scaling", True), ("lm_head_multiplier", False)):
        value = getattr(config, name, None)
        if value is not None:
            scale *= 1.0 / float(value) if invert else float(value)
    softcap = getattr(config, "final_logit_softcapping", None)
    return OutputHead(head.weight, getattr(head, "bias", None), scale, None if not softcap else float(softcap))


def hidden_states(model: Any, input_ids: Tensor, **kwargs: Any) -> Tensor:
    """Last hidden states [B, S, D] after the final norm, without running the head; `input_ids` is [B, S].

    Of a masked LM they are what its head makes of them before it multiplies by the vocabulary (a dense layer, an
    activation and a norm, under another name in each architecture).
    """
    if is_masked(model):
        with _without_vocabulary(model):
            return all_logits(model, input_ids, **kwargs)
    hidden: Tensor = model.base_model(input_ids=input_ids, use_cache=False, **kwargs).last_hidden_state
    return hidden


def all_logits(model: Any, input_ids: Tensor, **kwargs: Any) -> Tensor:
    """The model's own logits [B, S, V] of `input_ids` [B, S], without a cache."""
    if not is_masked(model):
        kwargs["use_cache"] = False
    logits: Tensor = model(input_ids=input_ids, **kwargs).logits
    return logits


@contextmanager
def _without_vocabulary(model: Any) -> Iterator[None]:
    """Let the product with the vocabulary hand on what it is given."""
    head = model.get_output_embeddings()
    head.forward = nn.Identity().forward
    try:
        yield
    finally:
        del head.forward


def why_not_finite(model: nn.Module) -> str:
    """What makes a model's results no numbers: a weight, by name, or values in between."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"its weight {name} holds NaN or infinity: download it again, or use an earlier checkpoint"
    return f"its weights are finite, and its values in between are too large for {next(model.parameters()).dtype}"


@torch.no_grad()
def check_output_head(model: Any, name: str) -> None:
    """Compare head(hidden) with the model's own logits on a few tokens.

    Raises:
        InputError: they are NaN.
        CompressError: they differ, so this architecture transforms its logits in a way `output_head` does not know.
    """
    device = next(model.parameters()).device
    vocabulary = model.get_input_embeddings().num_embeddings
    tokens = min(16, context_tokens(model.config) or 16)
    ids = torch.arange(1, tokens + 1, device=device).remainder(vocabulary)[None]
    expected = all_logits(model, ids)[0].float()
    hidden = hidden_states(model, ids)[0]
    found = output_head(model).logits(hidden).float()
    exact = hidden.dtype == torch.float32 and not torch.is_autocast_enabled(device.type)
    tolerance = 1e-4 if exact else 0.05
    error = (found - expected).abs().max().item()
    if math.isnan(error):
        raise InputError(f"{name} gives NaN for logits: {why_not_finite(model)}.")
    if not error <= tolerance * max(1.0, expected.abs().max().item()):
        raise CompressError(
            f"{name} ({type(model).__name__}) transforms its logits in a way this tool does not know: hidden states "
            f"times the output head differ from the model's logits by up to {error:.3g}."
        )
