"""Is the student the teacher without its dropped layers? Measured on logits, in fp32 on the CPU.

1. Student(x) against Teacher(x) in which each dropped layer returns its input: the same arithmetic in the same
   order, so anything but rounding means that the student's config or weights are wrong.
2. Student(x) with a key-value cache, one token at a time, against Student(x) without: what generation relies on.

Attention windows longer than the few tokens of the check are made shorter in both models, or a sliding layer that
became a full one would go unnoticed.
"""

import dataclasses
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from compress.errors import CompressError
from compress.models import decoder_layers, load_config, load_model
from compress.units import format_bytes

NUM_SEQUENCES = 2
NUM_TOKENS = 40
WINDOW = 12
IDENTITY_TOLERANCE = 1e-5
"""Of the largest logit: the two models do the same arithmetic, but may be split over threads in another way."""
CACHE_TOLERANCE = 1e-3
"""Of the largest logit: one token at a time sums in another order; a wrong cache is off by tenths."""
_LOADING_OVERHEAD = 1.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What was compared and how far it was apart. Differences are the largest absolute ones between logits."""

    passed: bool
    skipped: str | None = None
    """Why nothing was compared; None when it was."""
    max_abs_difference: float | None = None
    max_abs_difference_cached: float | None = None
    max_abs_logit: float | None = None
    tokens: int = 0


def reason_to_skip(num_parameters: int) -> str | None:
    """Why a teacher of this size cannot be compared here: its fp32 weights exceed the free memory. None when it can."""
    needed, free = 4 * num_parameters * _LOADING_OVERHEAD, available_memory()
    if needed <= free:
        return None
    return f"the teacher in fp32 needs {format_bytes(needed)} of memory and {format_bytes(free)} are free"


def available_memory() -> int:
    """Bytes of memory this process can still take: the machine's, or what a container (cgroup v2) leaves."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return int(free)
    return int(min(free, limit - int(stat["anon"])))


@torch.no_grad()
def check_student(teacher: Path, student: Path, dropped: tuple[int, ...]) -> CheckResult:
    """Compare the model in `student` with the one in `teacher` without its `dropped` layers.

    Raises:
        InputError: one of them does not load strictly.
        CompressError: they differ, or the student's cached logits differ from its uncached ones.
    """
    model = _load(teacher)
    ids = _token_ids(model)
    layers = decoder_layers(model)[1]
    for index in dropped:
        _make_identity(layers[index])
    expected = model(input_ids=ids, use_cache=False).logits
    del model, layers
    model = _load(student)
    found = model(input_ids=ids, use_cache=False).logits
    largest = expected.abs().max().item()
    identity = _require_near(found, expected, IDENTITY_TOLERANCE, "the teacher with its dropped layers skipped")
    cached = _require_near(_cached_logits(model, ids), found, CACHE_TOLERANCE, "its own logits without a cache")
    return CheckResult(
        passed=True,
        max_abs_difference=identity,
        max_abs_difference_cached=cached,
        max_abs_logit=largest,
        tokens=ids.numel(),
    )


def _load(folder: Path) -> Any:
    config = load_config(folder)
    text = config.get_text_config()
    for name in ("sliding_window", "attention_chunk_size"):
        size = getattr(text, name, None)
        if isinstance(size, int) and size > WINDOW:
            setattr(text, name, WINDOW)
    return load_model(folder, dtype=torch.float32, config=config)


def _token_ids(model: Any) -> Tensor:
    """Random token ids [NUM_SEQUENCES, NUM_TOKENS], always the same for a vocabulary."""
    generator = torch.Generator().manual_seed(0)
    size = model.get_input_embeddings().num_embeddings
    return torch.randint(size, (NUM_SEQUENCES, NUM_TOKENS), generator=generator)


def _make_identity(layer: nn.Module) -> None:
    """Let a live layer return its input.

    The layer still runs, because what it returns beside the hidden states, if anything, its stack may expect.
    """
    forward = layer.forward

    def identity(*args: Any, **kwargs: Any) -> Any:
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()
        output = forward(*args, **kwargs)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    layer.forward = identity


def _cached_logits(model: Any, ids: Tensor) -> Tensor:
    """Logits [B, S, V] for `ids` [B, S]: the first half at once, then a token at a time, as generation does."""
    half = ids.shape[1] // 2
    output = model(input_ids=ids[:, :half], use_cache=True)
    pieces = [output.logits]
    for position in range(half, ids.shape[1]):
        output = model(
            input_ids=ids[:, position : position + 1], past_key_values=output.past_key_values, use_cache=True
        )
        pieces.append(output.logits)
    return torch.cat(pieces, dim=1)


def _require_near(found: Tensor, expected: Tensor, tolerance: float, what: str) -> float:
    difference = (found - expected).abs().max().item()
    largest = expected.abs().max().item()
    if not difference <= tolerance * max(largest, 1.0):
        raise CompressError(
            f"The student's logits differ from {what} by up to {difference:.3g} (the largest logit is {largest:.3g}; "
            f"{tolerance * max(largest, 1.0):.1g} is allowed). This architecture uses the layers' positions in a way "
            "this tool does not know, so nothing was written. Please report the model's type and config.json."
        )
    return float(difference)
