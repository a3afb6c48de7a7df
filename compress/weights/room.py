"""Room on the disk for a model that is written, and what is said where there is none."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compress.base.errors import DISK_FULL, CompressError
from compress.base.units import format_bytes


def require_space(out: Path, needed: int) -> None:
    """Refuse to start what the disk of the folder `out` has no room for.

    Raises:
        CompressError: it has less than `needed` bytes free.
    """
    free = shutil.disk_usage(out).free
    if needed > free:
        raise CompressError(
            f"{out} needs {format_bytes(needed)} and {format_bytes(free)} are free there. Make room, or write "
            "it to another disk."
        )


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Turn an OSError into a CompressError that names the output where its disk is full, else the file."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise CompressError(
                f"{out} could not be written ({error.strerror}); what was there of it is removed. Make room on the "
                "disk, or write it elsewhere."
            ) from error
        raise CompressError(
            f"{error.filename or 'A file'} could not be read or written ({error.strerror or error}); nothing is left "
            f"of {out}."
        ) from error
