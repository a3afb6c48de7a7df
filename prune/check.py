"""Is the student the teacher without its dropped layers? Measured on logits, in fp32 on the CPU.

1. Student(x) against Teacher(x) in which each dropped layer returns its input: the same arithmetic in the same
   order, so anything but rounding means that the student's config or weights are wrong. Of a vision-language model on
   text, and then on a text with an image, where its folder has a processor that can be used.
2. What the student generates with its cache, token by token, against one pass over the same text without: what
   generation relies on. Where they differ, the teacher must differ from itself in the same way. Not of a masked LM.

For the first, attention windows longer than the few tokens of the check are made shorter in both models, or a sliding
layer that became a full one would go unnoticed.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.base.errors import CompressError, InputError, reason_of
from compress.base.machine import host_memory
from compress.base.progress import progress_bar, say, working
from compress.base.units import format_bytes
from compress.model.kinds import is_masked, sees_images
from compress.model.lengths import context_tokens
from compress.model.load import load_config, load_model
from compress.model.parts import all_logits, decoder_layers
from compress.model.vision import sample_inputs

NUM_SEQUENCES = 2
NUM_TOKENS = 40
WINDOW = 12
_WINDOWS = ("sliding_window", "attention_chunk_size", "local_attention", "window_size")
IDENTITY_TOLERANCE = 1e-5
"""Of the largest logit: the two models do the same arithmetic, but may be split over threads in another way."""
CAST_TOLERANCE = 1e-2
"""Of the largest logit, where weights are cast: those that the teacher keeps in another dtype were not rounded."""
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
    teacher_cache_differs: bool = False
    """The teacher generates other logits with its cache than without; the student was held against those."""
    max_abs_difference_image: float | None = None
    """Of a vision-language model, on a text with an image; None where it was compared on text alone."""
    no_image: str | None = None
    """Why a vision-language model was compared on text alone."""


def reason_to_skip(num_parameters: int) -> str | None:
    """Why a teacher of this size cannot be compared here: its fp32 weights exceed the free memory. None when it can."""
    needed, free = 4 * num_parameters * _LOADING_OVERHEAD, host_memory().free
    if needed <= free:
        return None
    return f"the teacher in fp32 needs {format_bytes(needed)} of memory and {format_bytes(free)} are free"


@torch.no_grad()
def check_student(
    teacher: Path,
    student: Path,
    dropped: tuple[int, ...],
    cast: str | None = None,
    change: Callable[[Any], None] = lambda _: None,
) -> CheckResult:
    """Compare the model in `student` with the one in `teacher` without its `dropped` layers.

    Where the student's weights were `cast`, the teacher's are rounded to that dtype first; then `change` is what
    becomes of the teacher.

    Raises:
        InputError: one of them does not load strictly, or does not run on token ids alone.
        CompressError: they differ, or the student's cached logits differ from its uncached ones.
    """
    # What the teacher says without its dropped layers. One model is in memory at a time.
    model = _load(teacher, WINDOW)
    if cast is not None:
        for parameter in model.parameters():
            parameter.copy_(parameter.to(getattr(torch, cast)))
    change(model)
    ids = _token_ids(model)
    layers = decoder_layers(model)[1]
    for index in dropped:
        _make_identity(layers[index])
    expected = _run(model, teacher, ids)
    seen, no_image = _with_image(model, teacher)
    shown = None if seen is None else _run(model, teacher, **seen)
    del model, layers
    # First comparison: the student says the same.
    model = _load(student, WINDOW)
    identity = _distance(_run(model, student, ids), expected)
    image = None
    if seen is not None and shown is not None:
        image = _distance(_run(model, student, **seen), shown)
        identity = max(identity, image, key=lambda found: found.difference / max(found.largest, 1.0))
    if not identity.within(CAST_TOLERANCE if cast else IDENTITY_TOLERANCE):
        raise CompressError(
            f"The student's logits differ from those of the teacher with its dropped layers skipped {identity}. This "
            "architecture uses the layers' positions in a way this tool does not know, so nothing was written. Please "
            "report the model's type and config.json."
        )
    if is_masked(model):  # which has no cache and writes nothing
        return CheckResult(
            passed=True,
            max_abs_difference=identity.difference,
            max_abs_logit=identity.largest,
            tokens=ids.numel(),
        )
    # Second: what it writes with its cache, at its real windows, is what it says of the same text without one.
    if _long_windows(load_config(student)):
        del model
        model = _load(student, None)
    half = ids.shape[1] // 2
    text, found = _generate(model, ids[:, :half])
    cached = _distance(found, _run(model, student, text)[:, half - 1 : -1])
    del model
    if not (faithful := cached.within(CACHE_TOLERANCE)):
        cached = _distance_from_teachers(text, found, teacher, dropped, change, cached)
    return CheckResult(
        passed=True,
        max_abs_difference=identity.difference,
        max_abs_difference_cached=cached.difference,
        max_abs_logit=identity.largest,
        tokens=ids.numel(),
        teacher_cache_differs=not faithful,
        max_abs_difference_image=None if image is None else image.difference,
        no_image=no_image,
    )


def _with_image(model: Any, folder: Path) -> tuple[dict[str, Tensor] | None, str | None]:
    """Inputs with an image for a vision-language model; or why there are none, which is said. Neither of another."""
    if not sees_images(model.config):
        return None, None
    try:
        return sample_inputs(folder), None
    except CompressError as error:
        say(f"The student is compared with its teacher on text alone, without an image. {error}")
        return None, str(error)


def _distance_from_teachers(
    text: Tensor,
    logits: Tensor,
    teacher: Path,
    dropped: tuple[int, ...],
    change: Callable[[Any], None],
    cached: "_Distance",
) -> "_Distance":
    """How far the `logits` with which a student wrote `text` are from those with which its teacher does.

    Some models differ from themselves, here by `cached`, when they generate; then the student must do what its teacher
    does.
    """
    model = _load(teacher, None)
    change(model)
    for index in dropped:
        _make_identity(decoder_layers(model)[1][index])
    same_text, expected = _generate(model, text[:, : text.shape[1] // 2])
    found = _distance(logits, expected)
    if torch.equal(text, same_text) and found.within(CACHE_TOLERANCE):
        return found
    raise CompressError(
        f"The student's logits with a key-value cache differ from those without one {cached}, and not as its teacher's "
        "do, so it would generate wrong text; nothing was written. Please report the model's type and config.json."
    )


@dataclasses.dataclass(frozen=True)
class _Distance:
    difference: float
    """Largest absolute difference between two sets of logits."""
    largest: float
    """Largest absolute logit."""

    def within(self, tolerance: float) -> bool:
        """Whether the difference is at most `tolerance` of the largest logit (or of 1); never with a NaN."""
        return self.difference <= tolerance * max(self.largest, 1.0)

    def __str__(self) -> str:
        return f"by up to {self.difference:.3g} (the largest logit is {self.largest:.3g})"


def _distance(found: Tensor, expected: Tensor) -> _Distance:
    return _Distance((found - expected).abs().max().item(), expected.abs().max().item())


def _load(folder: Path, window: int | None) -> Any:
    """The model in fp32, its attention windows no longer than `window` tokens."""
    config = load_config(folder)
    if window is not None:
        for name in _long_windows(config):
            setattr(config.get_text_config(), name, window)
    return load_model(folder, dtype=torch.float32, config=config)


def _long_windows(config: Any) -> list[str]:
    """Fields of a config with windows that are longer than `WINDOW`."""
    sizes = {name: getattr(config.get_text_config(), name, None) for name in _WINDOWS}
    return [name for name, size in sizes.items() if isinstance(size, int) and size > WINDOW]


def _run(model: Any, folder: Path, input_ids: Tensor, **inputs: Tensor) -> Tensor:
    """Logits [B, S, V] for `input_ids` [B, S] and what else the model is given, without a cache."""
    try:
        with working(f"checking {folder}"):
            logits = all_logits(model, input_ids, **inputs)
    except Exception as error:
        raise InputError(
            f"{folder} loads but does not run on {input_ids.shape[1]} tokens ({type(error).__name__}: "
            f"{reason_of(error)}). Its config.json contradicts itself, or it needs more than text."
        ) from error
    return logits


def _token_ids(model: Any) -> Tensor:
    """Random token ids [NUM_SEQUENCES, NUM_TOKENS] (an even number that fits the model's context), always the same for
    a vocabulary; none of them pads."""
    generator = torch.Generator().manual_seed(0)
    size = model.get_input_embeddings().num_embeddings
    tokens = max(2, min(NUM_TOKENS, context_tokens(model.config) or NUM_TOKENS) // 2 * 2)
    ids = torch.randint(size, (NUM_SEQUENCES, tokens), generator=generator)
    pad = getattr(model.config.get_text_config(), "pad_token_id", None)
    return ids if pad is None else torch.where(ids == pad, (ids + 1) % size, ids)


def _make_identity(layer: nn.Module) -> None:
    """Let a live layer return its input.

    The layer still runs, because what it returns beside the hidden states, if anything, its stack may expect.
    """
    forward = layer.forward

    def identity(*args: Any, **kwargs: Any) -> Any:
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()
        output = forward(*args, **kwargs)
        return type(output)([hidden, *output[1:]]) if isinstance(output, tuple | list) else hidden

    layer.forward = identity


def _generate(model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Continue `ids` [B, S] greedily with a cache, to [B, 2 S]; and the logits [B, S, V] of the new tokens."""
    from transformers import GenerationConfig, StoppingCriteriaList

    model.generation_config = GenerationConfig()
    settings = GenerationConfig(
        max_new_tokens=ids.shape[1],
        do_sample=False,
        use_cache=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    try:
        with progress_bar("checking what it generates", ids.shape[1], unit="tokens") as bar:

            def no_end(written: Tensor, *_: Any, **__: Any) -> Tensor:
                bar.advance()
                return torch.zeros(len(written), dtype=torch.bool)

            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=settings,
                stopping_criteria=StoppingCriteriaList([no_end]),
            )
    except Exception as error:
        raise InputError(
            f"{type(model).__name__} does not generate from token ids alone ({type(error).__name__}: "
            f"{reason_of(error)}), so whether the student does rightly cannot be known; nothing was "
            "written."
        ) from error
    return output.sequences, torch.stack(output.logits, dim=1)
