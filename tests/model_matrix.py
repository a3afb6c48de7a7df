"""One cell of the matrix: a tiny teacher of a type is cut, and the student is held against what it must equal.

The oracle is the teacher itself in which hooks let each dropped layer return its input. It shares no code with the
check that `prune` makes.
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from model_zoo import VOCABULARY, layer_stack, save_teacher
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from compress.errors import CompressError
from compress.models import load_model
from compress.prune import prune

KEPT = {"alternate": (1, 3, 5), "0,5": (0, 5), "contiguous:4": (0, 1, 2, 5), "2:3": (2,), "0,1,3-5": (0, 1, 3, 4, 5)}
"""Every second layer, the ends, a block cut out, one layer, all but one."""
TOLERANCE = 1e-4
"""Of the largest logit, in fp32."""
_PROMPT, _NEW = 12, 6


@dataclasses.dataclass(frozen=True)
class Cell:
    """What a keep list gave for a type."""

    outcome: str
    """`right`, `refused`, `wrong` or `crashed`."""
    reason: str = ""


def run_type(model_type: str, keeps: Sequence[str] = tuple(KEPT)) -> dict[str, Cell]:
    """The outcome of every keep list for a type. A type whose tiny model cannot be made is refused as a whole."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            save_teacher(folder / "teacher", model_type)
        except Exception as error:
            return dict.fromkeys(keeps, Cell("crashed", f"no tiny model: {_text(error)}"))
        return {keep: _cell(folder, keep, number) for number, keep in enumerate(keeps)}


def _cell(folder: Path, keep: str, number: int) -> Cell:
    out = folder / f"student-{number}"
    try:
        prune(folder / "teacher", out, keep)
    except CompressError as error:
        return Cell("refused", str(error))
    except Exception as error:
        return Cell("crashed", _text(error))
    try:
        problem = difference(folder / "teacher", out, KEPT[keep])
    except Exception as error:
        problem = _text(error)
    return Cell("wrong", problem) if problem else Cell("right")


@torch.no_grad()
def difference(teacher: Path, student: Path, kept: tuple[int, ...]) -> str:
    """How the student differs from the teacher without its dropped layers; empty when it does not.

    Compared are the logits without a cache, what `generate` writes with one, and the logits after saving and strict
    loading.
    """
    ids = torch.randint(3, VOCABULARY - 1, (2, 2 * _PROMPT), generator=torch.Generator().manual_seed(1))
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).eval()
    with skipped(model, kept):
        expected = _logits(model, ids)
        text = _greedy(model, ids[:, :_PROMPT])
        with_cache = _generated(model, ids[:, :_PROMPT])
    if not expected.std() > 0.01:
        return f"the oracle's logits say nothing: their deviation is {expected.std():.2g}"
    model = load_model(student, dtype=torch.float32)
    if not _close(found := _logits(model, ids), expected):
        return f"logits differ by {(found - expected).abs().max():.3g} of {expected.abs().max():.3g}"
    written = _generated(model, ids[:, :_PROMPT])
    if not (torch.equal(written, text) or torch.equal(written, with_cache)):
        return f"generate writes {written[:, _PROMPT:].tolist()} and the oracle {text[:, _PROMPT:].tolist()}"
    with tempfile.TemporaryDirectory() as again:
        model.save_pretrained(again)
        reloaded = load_model(Path(again), dtype=torch.float32)
        if not torch.equal(_logits(reloaded, ids), found):
            return "saving and loading again changes the logits"
    return ""


@contextlib.contextmanager
def skipped(model: Any, kept: tuple[int, ...]) -> Iterator[None]:
    """Let the layers that are not in `kept` return their input."""

    def identity(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return type(output)([hidden, *output[1:]]) if isinstance(output, tuple | list) else hidden

    handles = [
        layer.register_forward_hook(identity, with_kwargs=True)
        for index, layer in enumerate(layer_stack(model))
        if index not in kept
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _logits(model: Any, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def _greedy(model: Any, ids: Tensor) -> Tensor:
    """`ids` [B, S] and the most likely token after them, six times, computed anew each time."""
    for _ in range(_NEW):
        ids = torch.cat([ids, _logits(model, ids)[:, -1:].argmax(-1)], dim=1)
    return ids


def _generated(model: Any, ids: Tensor) -> Tensor:
    """What `generate` makes of `ids` [B, S] with its cache, six greedy tokens."""
    model.generation_config = GenerationConfig()
    settings = GenerationConfig(max_new_tokens=_NEW, do_sample=False, use_cache=True)
    text: Tensor = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return text


def _close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= TOLERANCE * max(1.0, expected.abs().max().item()))


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
