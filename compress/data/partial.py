"""`OUT.partial/`: a preparation that is under way, owned by one process, and the record that lets another go on."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compress.artifacts import fsync_path, read_json, write_text
from compress.errors import InputError, UsageError

_STATE = "state.json"


@contextmanager
def owned_folder(out: Path) -> Iterator[Path]:
    """Create or find `OUT.partial/` and lock it for this process; the lock goes with the process, however it ends.

    Raises:
        UsageError: another process is preparing the same store.
    """
    folder = out.with_name(out.name + ".partial")
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"Another process is preparing {out} now; wait for it, or name another folder.") from None
        yield folder
    finally:
        os.close(descriptor)


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Record how far the preparation is."""
    write_text(folder / _STATE, json.dumps(state, ensure_ascii=False))


def load_state(folder: Path) -> dict[str, Any] | None:
    """The record of an earlier process, or None when there is none that can be read."""
    try:
        state = read_json(folder / _STATE)
    except InputError:
        return None
    return state if isinstance(state, dict) else None


def clear(folder: Path) -> None:
    """Remove everything inside the folder."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def forget_state(folder: Path) -> None:
    """Remove the record: the store is complete."""
    (folder / _STATE).unlink(missing_ok=True)
    fsync_path(folder)


def remove_if_empty(folder: Path) -> None:
    """Leave nothing behind when nothing was done."""
    if not any(folder.iterdir()):
        folder.rmdir()
