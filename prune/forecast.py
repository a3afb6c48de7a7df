"""How long reading a text will take, said before most of that time is spent."""

import time
from collections.abc import Iterator

from torch import Tensor

from compress.base.progress import say
from compress.base.units import format_seconds
from compress.prune.choose.calibration import Calibration

_WORTH_SAYING_S = 10.0
_BATCHES = 8


def tell_time(what: str, text: Calibration, seconds: float, option: str) -> None:
    """Say how long `what` takes on the text, in all, and which option makes it another amount; not of moments."""
    if seconds >= _WORTH_SAYING_S:
        say(f"{what} on {text.rows.size:,} tokens takes about {format_seconds(seconds)} here ({option} N for another).")


def told_batches(what: str, text: Calibration, batch_tokens: int) -> Iterator[Tensor]:
    """The text in batches, eight at least where its rows allow; how long all will take is said after the first."""
    started = time.monotonic()
    batches = text.batches(min(batch_tokens, text.rows.size // _BATCHES))
    first = next(batches)
    yield first
    seconds = (time.monotonic() - started) * text.rows.size / first.numel()
    tell_time(what, text, seconds, "--calibration-tokens")
    yield from batches
