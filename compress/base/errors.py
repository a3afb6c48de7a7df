"""Failures a user can act on. The command line prints one paragraph and exits with `exit_code`."""

import errno
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where it gives no more room: the disk, a quota, the longest file."""


def reason_of(error: object, longest: int = 400) -> str:
    """What a library's error says, to be quoted within a sentence: on one line, without the full stop at its end, cut
    after a sentence or else after a word."""
    text = " ".join(str(error).split())
    if len(text) <= longest:
        return text.removesuffix(".")
    cut = text[:longest]
    end = max(cut.rfind(mark) for mark in (". ", "! ", "? "))
    return cut[:end] if end > longest // 3 else cut.rpartition(" ")[0] + " ..."


class CompressError(Exception):
    """Something the user can mend. The message says what was given, what is allowed and what to do."""

    exit_code = 1


class UsageError(CompressError):
    """Wrong command-line usage or a bad recipe."""

    exit_code = 2


class InputError(CompressError):
    """Bad input data, or a model folder that cannot be used."""

    exit_code = 3


class InterruptedRun(CompressError):
    """Stopped by a signal after saving. Running the same command again continues."""

    exit_code = 75


class Faults:
    """What is wrong, gathered, so that all of it is said at once."""

    def __init__(self) -> None:
        self.found: list[CompressError] = []

    def of(self, check: Callable[[], T]) -> T | None:
        """What `check` returns, or None if it refuses; why is kept. A signal to stop is not: it ends the whole."""
        try:
            return check()
        except InterruptedRun:
            raise
        except CompressError as error:
            self.found.append(error)
            return None

    def refuse(self) -> None:
        """Say all that was found.

        Raises:
            CompressError: the one fault as it was raised; or several in one, a line each, as wrong usage if one of them
                is that.
        """
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            kind = next((type(f) for f in self.found if isinstance(f, UsageError)), type(self.found[0]))
            raise kind("\n".join(dict.fromkeys(map(str, self.found)))) from self.found[0]
