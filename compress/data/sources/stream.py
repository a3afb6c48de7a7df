"""Reading a source as one stream of rows that survives damaged files and a flaky network."""

import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import BinaryIO, NamedTuple, TypeVar

from compress.base.errors import CompressError, InputError, reason_of
from compress.base.progress import say
from compress.base.signals import StopRequest
from compress.data.sources.instructions import Asked, Form
from compress.data.sources.readers import find_form, read_rows
from compress.data.sources.rows import Row
from compress.data.sources.sources import Source

T = TypeVar("T")

BATCH_CHARS = 2**20
_BATCH_ROWS = 2048
RETRIES = 6
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
_FINAL_STATUS = (400, 401, 403, 404, 410, 416, 451)


class Position(NamedTuple):
    """The next row to read."""

    file: int
    row: int


class Item(NamedTuple):
    """One row of the source, or the damage that ends a file."""

    file: int
    row: Row
    after: Position
    """Where to go on once this item is dealt with."""
    ends_file: bool = False

    @property
    def is_document(self) -> bool:
        """Whether there is text to tokenize: anything but white space."""
        return self.row.text is not None and self.row.text != "" and not self.row.text.isspace()


class Unavailable(InputError):
    """The source cannot be read now, though it may be later; what was prepared so far is kept."""


class Stopped(Exception):
    """A stop was requested while waiting for the network."""


class Retry:
    """Exponential backoff: 1 s, 2 s, 4 s ... with jitter between failures in a row, at most `RETRIES` or `tries`."""

    def __init__(self, stop: StopRequest, tries: int | None = None) -> None:
        self._stop = stop
        self._tries = RETRIES if tries is None else tries
        self._failures = 0

    def succeeded(self) -> None:
        """Something was read: the next failure is a first one."""
        self._failures = 0

    def failed(self, what: str, error: Exception) -> None:
        """Wait before the next try.

        Raises:
            Unavailable: this was the last try, or trying again would not help (no permission, not found).
            Stopped: a stop was requested meanwhile.
        """
        reason = _reason(error)
        if is_final(error):
            raise Unavailable(f"{what} cannot be read ({reason}). What was prepared so far is kept.") from error
        self._failures += 1
        if self._failures > self._tries:
            raise Unavailable(
                f"{what} could not be read in {self._failures} tries; the last failed with {reason}. What was prepared "
                "so far is kept: check the network and run the same command again to go on."
            ) from error
        wait = min(FIRST_WAIT_S * 2 ** (self._failures - 1), LONGEST_WAIT_S) * random.uniform(0.75, 1.25)
        say(f"{what}: {reason}. Try {self._failures} of {self._tries} again in {wait:.1f} s.")
        deadline = time.monotonic() + wait
        while (left := deadline - time.monotonic()) > 0:
            if self._stop:
                raise Stopped
            time.sleep(min(left, 0.2))

    def call(self, what: str, function: Callable[[], T]) -> T:
        """The result of `function`, tried again while it fails with anything but a CompressError."""
        while True:
            try:
                result = function()
            except CompressError:
                raise
            except Exception as error:
                self.failed(what, error)
            else:
                self.succeeded()
                return result


def is_final(error: BaseException | None) -> bool:
    """Whether a hub said no, so that asking again would not help."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status in _FINAL_STATUS or type(error).__name__ == "OfflineModeIsEnabled"


def form_of(source: Source, asked: Asked, retry: Retry) -> Form:
    """The form of a connected source's rows, as its first file has it; where that cannot be told, what is asked first.

    Raises:
        Unavailable: the network failed too often in a row.
    """
    if asked.form == "text" or not source.files:
        return asked.first
    while True:
        file: BinaryIO | None = None
        try:
            file = source.open(0)
            with file:
                return find_form(file, source.files[0].layout, asked, source.files[0].size) or asked.first
        except Exception:
            failure = source.failure(file)
            if failure is None:  # what is wrong with the file is said when it is read for its rows
                return asked.first
            retry.failed(source.full_name(0), failure)


def read_items(source: Source, form: Form, start: Position, retry: Retry) -> Generator[Item, None, None]:
    """Every row of the source from `start` on, exactly once and in order, whatever the network does.

    A file that is damaged midway gives its rows up to there, and then an item with `ends_file`.

    Raises:
        InputError: a column of the form is missing.
        Unavailable: the network failed too often in a row, or the system failed to open or read a file.
    """
    files = source.files
    index, next_row = start
    while index < len(files):
        file: BinaryIO | None = None
        try:
            file = source.open(index)
            with file:
                name, layout, size = source.full_name(index), files[index].layout, files[index].size
                for row in read_rows(file, name, layout, form, start=next_row, size=size):
                    retry.succeeded()
                    next_row = row.number + 1
                    yield Item(index, row, Position(index, next_row))
        except CompressError:
            raise
        except Exception as error:
            if failure := source.failure(file):
                retry.failed(source.full_name(index), failure)
                continue
            if not _is_damage(error):
                raise Unavailable(
                    f"{source.full_name(index)} cannot be read now ({_reason(error)}): run the same command again to "
                    "go on, or leave the file out if it can never be read."
                ) from error
            fault = f"is damaged ({reason_of(error) or type(error).__name__}); the rest is not read"
            yield Item(index, Row(next_row, None, fault, 1.0), Position(index + 1, 0), ends_file=True)
        index, next_row = index + 1, 0


def _is_damage(error: Exception) -> bool:
    """Whether reading failed because of what a file holds, and not because of the machine or its file system.

    What the system says has a number, what a decoder says has none.
    """
    return not isinstance(error, MemoryError) and getattr(error, "errno", None) is None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {reason_of(error)}"


def batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Rows in groups of about a million characters; what a group holds has no influence on the store."""
    batch: list[Item] = []
    chars = 0
    for item in items:
        batch.append(item)
        chars += len(item.row.text or "")
        if chars >= BATCH_CHARS or len(batch) >= _BATCH_ROWS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def texts(batch: Iterable[Item]) -> list[str]:
    """The documents among some rows."""
    return [item.row.text for item in batch if item.is_document and item.row.text is not None]
