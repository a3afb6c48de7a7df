"""Running a target on one input or on many: in bounded time and memory, and with nothing but our own errors."""

import contextlib
import dataclasses
import io
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from compress.base.errors import CompressError, InputError, UsageError
from compress.cli import main
from compress.cli.exits import UNUSABLE_PATH

LIMIT_S = 60
LIMIT_BYTES = 4 * 2**30
"""Memory that one input may take beyond what the process has."""


@dataclasses.dataclass(frozen=True)
class Target:
    """Something that reads what a user gives: `attempt` does so with one of `inputs`."""

    inputs: st.SearchStrategy[Any]
    attempt: Callable[[Any], object]


@dataclasses.dataclass
class Tally:
    """How often a target was tried, and what came of it."""

    inputs: int = 0
    values: int = 0
    refused: int = 0
    seconds: float = 0.0


class TooLong(BaseException):
    """Not an Exception, so that nothing catches it on the way."""


def fuzz(target: Target, examples: int, tally: Tally, *, random: bool) -> None:
    """Try `examples` inputs, the same ones every time unless `random`, and count them in `tally`.

    Raises:
        BaseException: the smallest input that gives anything but a value or a CompressError of code 2 or 3.
    """
    started = time.monotonic()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=not random,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(target.inputs)
    def attempt(value: Any) -> None:
        tally.inputs += 1
        if refused(target.attempt, value):
            tally.refused += 1
        else:
            tally.values += 1

    try:
        attempt()
    finally:
        tally.seconds = time.monotonic() - started


def refused(attempt: Callable[[Any], object], value: Any) -> bool:
    """Whether an input is refused by a CompressError a user can act on; any other error is raised."""
    with bounded(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            attempt(value)
        except (UsageError, InputError) as error:
            assert str(error).strip()
            return True
        except OSError as error:
            if error.errno not in UNUSABLE_PATH:  # which `main` refuses
                raise
            return True
        except CompressError as error:
            raise AssertionError(f"exit code {error.exit_code}: {error}") from error
    return False


def command(*arguments: str) -> None:
    """Run `compress ARGUMENTS` in this process.

    Raises:
        InputError: it refused the arguments or the files, as it should.
        AssertionError: another exit code than 0, 2 or 3, a traceback, or a fault of the tool.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    argv, error, output = sys.argv, io.StringIO(), io.StringIO()
    sys.argv = ["compress", *arguments]
    code: Any = 0
    try:
        with contextlib.redirect_stderr(error), contextlib.redirect_stdout(output):
            main()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)
    said = error.getvalue()
    assert code in (0, 2, 3), f"exit code {code}: {said}"
    assert "Traceback" not in said, said
    assert "fault of the tool" not in said, said
    if code:
        assert said.strip(), "an error without a word"
        raise InputError(said)


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Stop a block that takes too long or too much memory."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLong

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + LIMIT_BYTES, hard))
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    except TooLong:
        raise AssertionError(f"it took longer than {LIMIT_S} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
