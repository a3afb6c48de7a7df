"""Signals: how a command is asked to stop, and when it does."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether a signal asked the process to stop; true from the first SIGINT or SIGTERM on."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def __bool__(self) -> bool:
        return self.signal_name is not None


_asked_at: float | None = None
_ONE_REQUEST_S = 5.0


def interrupt_on_signal() -> None:
    """Let SIGTERM raise KeyboardInterrupt as SIGINT (Ctrl-C) does; those that follow at once do nothing.

    What the first one started, which is leaving and tidying up, is not itself interrupted. One that a finalizer
    swallows is not shown to the user, since `check_interrupt` raises it again.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    sys.unraisablehook = _unless_interrupted


def _unless_interrupted(failure: "sys.UnraisableHookArgs") -> None:
    if not issubclass(failure.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(failure)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _asked_at
    now = time.monotonic()
    if _asked_at is None or now - _asked_at > _ONE_REQUEST_S:
        _asked_at = now
        raise KeyboardInterrupt


def check_interrupt() -> None:
    """Raise again the KeyboardInterrupt of a signal that something swallowed: for loops, between units of work.

    Finalizers and callbacks from C do that, and `datasets` does while it hashes a function.
    """
    if interrupted():
        raise KeyboardInterrupt


def interrupted() -> bool:
    """Whether a signal has asked for the end of the command."""
    return _asked_at is not None


def ignore_signals() -> None:
    """Let SIGINT and SIGTERM do nothing: the process is ending, and has its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a flag that a loop checks between units of work; a second one changes nothing.

    A signal that the block did not act on, since it came to its end all the same, is raised again after it. Outside the
    main thread, where Python delivers no signals, the flag simply stays false.
    """
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        request.signal_name = signal.Signals(number).name

    old = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            old[number] = signal.signal(number, note)
        except ValueError:
            break
    try:
        yield request
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    if request.signal_name is not None:
        signal.raise_signal(signal.Signals[request.signal_name])
