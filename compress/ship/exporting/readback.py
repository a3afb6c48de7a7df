"""What was written, loaded as its users load it, against the model that it was made from.

1. Each weight, dequantised, is near the model's own: another order of rows, or another tensor, is off by more than its
   own size.
2. The logits are those of the model with these weights in its place, up to rounding: what else a format says
   (positions, norms, the shape of heads) is right.
3. A tokenizer that was rewritten (GGUF) encodes text as the model's.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.base.errors import CompressError
from compress.base.machine import host_memory
from compress.base.units import format_bytes
from compress.model.gguf_conversion import read_gguf
from compress.model.load import load_model, load_tokenizer, no_transformers_bars
from compress.model.parts import count_parameters, empty_model
from compress.ship.exporting.config import is_gguf_format, model_file

NUM_TOKENS = 48
_FAR = 0.5
"""Of a tensor's norm: 4-bit weights are off by a tenth, those of another tensor by more than all of it."""
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-3}
"""Of the largest logit, by the dtype that is computed in: the same products may be rounded in another order."""
_TEXTS = (
    "The quick brown fox can't jump over 12345 lazy dogs, as they'll say.\n\n\tIt costs $3.50!",
    "  Straße, naïve café – “déjà vu” … 東京 Москва 🙂 def f(x):\n    return x**2  # π\r\n",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadBack:
    """What was compared, and how far it was apart."""

    skipped: str | None = None
    """Why nothing was compared; None when it was."""
    weight_error: float | None = None
    """The largest ||w' - w|| / ||w|| over tensors w."""
    weight_error_of: str | None = None
    """That tensor."""
    max_abs_difference: float | None = None
    """Largest difference between the logits of what was written and of the model with its weights."""
    max_abs_logit: float | None = None


def reason_to_skip(config: Any, *, check: bool) -> str | None:
    """Why a model of this `PretrainedConfig` will not be compared; None where it will."""
    if not check:
        return "asked not to"
    needed, free = 2 * 4 * count_parameters(empty_model(config)), host_memory().free
    if needed <= free:
        return None
    return f"both models in fp32 need {format_bytes(needed)} of memory and {format_bytes(free)} are free"


@torch.no_grad()
def check_readback(student: Path, out: Path, format: str) -> ReadBack:
    """Compare what was written to the folder `out` with the model in `student`.

    Raises:
        InputError: one of them cannot be loaded.
        CompressError: they differ by more than the format's rounding.
    """
    if is_gguf_format(format):
        with no_transformers_bars():
            made, tokenizer = read_gguf(out / model_file(format))
        _check_tokenizer(load_tokenizer(student), tokenizer, format)
        made.eval()
    else:
        made = load_model(out, dtype=torch.float32)
    model = load_model(student, dtype=made.dtype)
    worst = _put_in(model, made, format)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.get_text_config().vocab_size, (1, NUM_TOKENS), generator=generator)
    found, expected = (each(input_ids=ids, use_cache=False).logits.float() for each in (made, model))
    difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
    if not difference <= _TOLERANCE[made.dtype] * max(largest, 1.0):
        raise CompressError(
            f"The logits of the {format} export differ by {difference:.3g} from those of the model with the same "
            f"weights (largest logit {largest:.3g}): the format says something else of the model than its config. "
            "Nothing was written. Please report the model's config.json."
        )
    return ReadBack(
        weight_error=worst[0], weight_error_of=worst[1], max_abs_difference=difference, max_abs_logit=largest
    )


def _put_in(model: Any, made: Any, format: str) -> tuple[float, str]:
    """Give a model the weights of what was made of it; the largest relative change, and of which tensor."""
    stored, worst = dict(made.named_parameters()), (0.0, "")
    for name, parameter in model.named_parameters():
        value = dequantized(stored[name])
        own = parameter.float()
        error = float((value - own).norm() / own.norm().clamp_min(1e-30))
        if not error <= _FAR:
            raise CompressError(
                f"{name} in the {format} export is off by {error:.2g} of its norm: it is not the model's. Nothing was "
                "written. Please report the model's config.json."
            )
        worst = max(worst, (error, name))
        parameter.copy_(value)
    return worst


def dequantized(weight: Tensor) -> Tensor:
    """A weight of a loaded model as float32, whatever it is stored in."""
    if not hasattr(weight, "qdata"):  # none of torchao's
        return weight.detach().float()
    from torchao.quantization import Int8Tensor

    # 8-bit weights are multiplied as they are and scaled after; others are dequantised first, to the model's dtype
    wanted = {"output_dtype": torch.float32} if isinstance(weight.detach(), Int8Tensor) else {}
    return weight.detach().dequantize(**wanted).float()


def _check_tokenizer(own: Any, written: Any, format: str) -> None:
    for text in (*_TEXTS, *(str(token) for token in own.get_added_vocab())):
        expected, found = (each(text, add_special_tokens=False)["input_ids"] for each in (own, written))
        if found != expected:
            raise CompressError(
                f"The tokenizer in the {format} export encodes {text!r} as {found} and the model's as {expected}. "
                "Nothing was written. Export the model in another format."
            )
