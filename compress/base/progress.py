"""What the user sees while a step runs. Everything here goes to stderr; stdout belongs to results (`--json`).

A terminal has bars. A log has a line of what lasts: after 5 seconds, 15, 30, each minute, and when it is done.
"""

import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from compress.base.processes import is_main
from compress.base.redact import redact
from compress.base.units import format_about, format_bytes, format_count, format_seconds

_FIRST_LINES_S = (5.0, 15.0, 30.0, 60.0)
_THEN_EVERY_S = 60.0
_LOOK_EVERY_S = 0.25
_LASTS_S = 10.0
_EXACT_BELOW = 10_000

console = Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """One line for the user, on stderr, from the main process. Square brackets are printed as they are."""
    if is_main():
        console.print(redact(message), markup=False, soft_wrap=True)


@functools.cache
def say_once(message: str) -> None:
    """`say`, unless this process has said the same."""
    say(message)


class Bar:
    """What is under way: `advance(n, note)` moves it, and `note` is shown at its end (loss, tokens/s)."""

    def __init__(self, label: str, total: int, unit: str, done: int) -> None:
        self.label, self.total, self.done = label, total, done
        self._unit, self._first, self._note = unit, done, ""
        self._started = self._moved = time.monotonic()
        self.show: Callable[[], None] = lambda: None

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Move by `count` units."""
        self.done += count
        self._note = self._note if note is None else note
        self._moved = time.monotonic()
        self.show()

    def start_anew(self) -> None:
        """Count time from now on if nothing is done yet: what came before says nothing of how long it will take."""
        if self.done == self._first:
            self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long it has lasted."""
        return time.monotonic() - self._started

    def __str__(self) -> str:
        """`81.9k of 256k tokens, 4 min left, loss 2.31`."""
        return self._joined(self._amount(), self._left() or "", self._note)

    def line(self) -> str:
        """The same as a line of a log."""
        lasted = f"{format_about(self.seconds)} so far"
        return f"{self.label}: {self._joined(self._amount(), self._left() or lasted, self._note)}"

    def last_line(self) -> str:
        """What is done, and how long it took."""
        done = f"done in {format_seconds(self.seconds)}"
        return f"{self.label}: {self._joined(f'{self._amount()} {done}'.lstrip(), self._note)}"

    def _amount(self) -> str:
        whole = self._written(self.total) + (f" {self._unit}" if self._unit not in ("", "bytes") else "")
        if not self.total:
            return ""
        return whole if self.done >= self.total else f"{self._written(self.done)} of {whole}"

    def _written(self, count: int) -> str:
        if self._unit == "bytes":
            return format_bytes(count)
        return f"{count:,}" if count < _EXACT_BELOW else format_count(count)

    def _left(self) -> str | None:
        """How long what is left will take at the rate so far; None where that cannot be known, or proved wrong."""
        if self.done == self._first or not self.total:
            return None
        each = (self._moved - self._started) / (self.done - self._first)
        left = each * (self.total - self.done) - (time.monotonic() - self._moved)
        return f"{format_about(left)} left" if left > 0 else None

    @staticmethod
    def _joined(*parts: str) -> str:
        return ", ".join(filter(None, parts))


_under_way: list[Bar] = []
"""The bars that are shown; each was begun while the one before it was under way."""
_displays: list[Progress] = []
"""The terminal's display, while there are bars."""


@contextmanager
def progress_bar(label: str, total: int, *, unit: str = "", done: int = 0, visible: bool = True) -> Iterator[Bar]:
    """Show how much is done, how long the rest will take, and a note, while the block runs.

    `done` of `total` units were finished by an earlier run; a total of 0 is what cannot be counted. The unit "bytes" is
    shown in KiB, MiB, GiB. With `visible=False`, in all but the main process, and on other threads nothing is shown.
    """
    bar = Bar(label, total, unit, done)
    if not (visible and is_main() and threading.current_thread() is threading.main_thread()):
        yield bar
        return
    _under_way.append(bar)
    try:
        with _on_terminal(bar) if console.is_terminal else _in_log(bar):
            yield bar
    finally:
        _under_way.remove(bar)
        if _under_way:
            _under_way[-1].start_anew()
        sys.stderr.flush()


def working(what: str, *, visible: bool = True) -> AbstractContextManager[Bar]:
    """Show that something is done which cannot be counted, and for how long, while the block runs."""
    return progress_bar(what, 0, visible=visible)


@contextmanager
def _on_terminal(bar: Bar) -> Iterator[None]:
    """A line on the display; that of a bar within another, or of what cannot be counted, goes when it is done."""
    display = (
        _displays[0]
        if _displays
        else Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            TimeElapsedColumn(),
            TextColumn("{task.fields[bar]}", markup=False),
            console=console,
            refresh_per_second=4,
            transient=not bar.total,
        )
    )
    task = display.add_task(redact(bar.label), total=bar.total or None, completed=bar.done, bar=bar)
    bar.show = lambda: display.update(task, completed=bar.done)
    if _displays:
        try:
            yield
        finally:
            display.remove_task(task)
        return
    _displays.append(display)
    try:
        with display:
            yield
    finally:
        _displays.clear()


@contextmanager
def _in_log(bar: Bar) -> Iterator[None]:
    """Lines while it lasts, and one when it is done."""
    ended = threading.Event()
    teller = threading.Thread(target=_tell, args=(bar, ended), name="progress", daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()
    if bar.seconds > _LASTS_S:
        say(bar.last_line())


def _tell(bar: Bar, ended: threading.Event) -> None:
    """Say how far a bar is, now and then; while there is one within it, that one does."""
    told = 0.0
    while not ended.wait(_LOOK_EVERY_S):
        lasted = bar.seconds
        told = told if told < lasted else 0.0  # it may have started anew
        due = next((moment for moment in _FIRST_LINES_S if moment > told), told + _THEN_EVERY_S)
        if lasted >= due and _under_way[-1:] == [bar]:
            say(bar.line())
            told = lasted
