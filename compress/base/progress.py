"""What the user sees while a step runs. Everything here goes to stderr; stdout belongs to results (`--json`)."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from compress.base.processes import is_main
from compress.base.redact import redact

_PLAIN_EVERY_S = 15.0

console = Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """One line for the user, on stderr, from the main process. Square brackets are printed as they are."""
    if is_main():
        console.print(redact(message), markup=False, soft_wrap=True)


class Bar:
    """A running progress bar: `advance(n, note)` moves it, and `note` is shown at its end (loss, tokens/s)."""

    def __init__(self, label: str, total: int, done: int, progress: Progress, task: TaskID, plain: bool) -> None:
        self._label, self._total, self._first, self._done = label, total, done, done
        self._progress, self._task, self._plain = progress, task, plain
        self._printed = self._started = time.monotonic()

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Move by `count` units; in a log file (no terminal) a line is printed every 15 seconds instead."""
        self._done += count
        self._progress.advance(self._task, count)
        if note is not None:
            self._progress.update(self._task, note=note)
        now = time.monotonic()
        if self._plain and now - self._printed >= _PLAIN_EVERY_S:
            self._printed = now
            each = (now - self._started) / max(self._done - self._first, 1)
            left = each * max(self._total - self._done, 0)
            say(f"{self._label}: {self._done}/{self._total}, {left:.0f} s left{', ' + note if note else ''}")


@contextmanager
def progress_bar(label: str, total: int, *, done: int = 0, visible: bool = True) -> Iterator[Bar]:
    """Show a bar with counts, elapsed time, time left and a note while the block runs.

    `done` units were finished by an earlier run. With `visible=False`, and in all but the main process, nothing is
    shown.
    """
    visible = visible and is_main()
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    ]
    disable = not (visible and console.is_terminal)
    with Progress(*columns, console=console, disable=disable, refresh_per_second=4) as progress:
        task = progress.add_task(label, total=total, completed=done, note="")
        yield Bar(label, total, done, progress, task, plain=visible and not console.is_terminal)
        sys.stderr.flush()
