"""Which layers to keep, as one writes it on the command line.

    alternate        every second layer, the last kept: of 16 layers 1,3,5,7,9,11,13,15
    1::2             a Python slice of the layers 0 .. n-1; negative ends count from the last layer
    0,2,5-9          a list, in increasing order; ranges include both ends
    uniform:N        N layers kept, evenly spaced, first and last among them; of several types of layer, each its share
    contiguous:N     N layers kept: one block is cut out right before the last layer (0 .. N-2 and n-1 stay)

    pattern:SPEC     as many layers as SPEC keeps, each type of layer by its share, the last layer kept (what
                     `--preserve-pattern` makes of a SPEC that is no list)

N is always the number of layers that stay.
"""

import re
from collections.abc import Sequence

from compress.base.errors import UsageError

ALLOWED = "alternate | a slice like 1::2 | a list like 0,2,5-9 | uniform:N | contiguous:N (N: how many layers stay)"

PATTERN = "pattern:"
_SLICE = re.compile(r"(-?\d+)?:(-?\d+)?(?::(-?\d+)?)?")
_LIST = re.compile(r"\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*")
_COUNTED = re.compile(r"(uniform|contiguous):(\d+)")


def check_spec(spec: str) -> None:
    """Check the form of a SPEC, which is all one can know before the model is.

    Raises:
        ValueError: the text has none of the allowed forms.
    """
    text = _tidy(spec).removeprefix(PATTERN)
    if _tidy(spec) != text and _LIST.fullmatch(text):
        raise ValueError(f"{text} names its layers itself, so no pattern can be kept; write {ALLOWED}")
    if text != "alternate" and not any(form.fullmatch(text) for form in (_SLICE, _LIST, _COUNTED)):
        raise ValueError(f"{spec!r} is no choice of layers; write {ALLOWED}")


def parse_spec(spec: str, num_layers: int) -> tuple[int, ...]:
    """Kept layers, increasing, out of the `num_layers` layers 0 .. n-1.

    Raises:
        UsageError: the SPEC has no allowed form, reaches outside the layers, names one twice, is out of order, or
            keeps none. The message repeats the SPEC and what is allowed.
    """
    try:
        check_spec(spec)
        text = _tidy(spec).removeprefix(PATTERN)
        if text == "alternate":
            return tuple(range((num_layers - 1) % 2, num_layers, 2))
        if match := _COUNTED.fullmatch(text):
            return _counted(match[1], int(match[2]), num_layers)
        if match := _SLICE.fullmatch(text):
            return _slice([None if part is None else int(part) for part in match.groups()], num_layers)
        return _list(text, num_layers)
    except ValueError as error:
        raise UsageError(
            f"--keep {spec}: {error}. The model has {num_layers} layers, 0 to {num_layers - 1}; allowed: {ALLOWED}."
        ) from None


def format_layers(layers: Sequence[int]) -> str:
    """The list form of a SPEC, runs of three or more written as ranges: `0,1,5-9`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)


def evenly_spaced(count: int, num_layers: int) -> tuple[int, ...]:
    """`count` of `num_layers` positions with both ends: round(i (n-1) / (count-1)), halves up; one is the last."""
    if count == 1:
        return (num_layers - 1,)
    return tuple((2 * i * (num_layers - 1) + count - 1) // (2 * (count - 1)) for i in range(count))


def _tidy(spec: str) -> str:
    return "".join(spec.split())


def _counted(kind: str, count: int, num_layers: int) -> tuple[int, ...]:
    least = min(2, num_layers) if kind == "uniform" else 1
    if not least <= count <= num_layers:
        raise ValueError(f"{kind}:N needs N from {least} to {num_layers}, the number of layers that stay")
    if kind == "uniform":
        return evenly_spaced(count, num_layers)
    return (*range(count - 1), num_layers - 1)


def _slice(parts: list[int | None], num_layers: int) -> tuple[int, ...]:
    start, stop, step = parts
    if step is not None and step < 1:
        raise ValueError("a slice's step must be at least 1, since layers keep their order")
    for end in (start, stop):
        if end is not None and not -num_layers <= end <= num_layers:
            raise ValueError(f"{end} is out of range")
    kept = tuple(range(num_layers))[start:stop:step]
    if not kept:
        raise ValueError("it drops every layer")
    return kept


def _list(text: str, num_layers: int) -> tuple[int, ...]:
    kept: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if last and int(last) < int(first):
            raise ValueError(f"the range {part} runs backwards")
        if max(int(first), int(last or first)) >= num_layers:
            raise ValueError(f"{part} is out of range")
        for layer in range(int(first), int(last or first) + 1):
            if layer in kept:
                raise ValueError(f"layer {layer} is named twice")
            if kept and layer < kept[-1]:
                raise ValueError(f"layer {layer} comes after {kept[-1]}; layers keep their order, so write them in it")
            kept.append(layer)
    return tuple(kept)
