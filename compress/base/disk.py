"""Files and folders on disk: complete or absent, hashed, owned by one process at a time.

A step writes into `OUT.compress-partial/`, everything is fsynced, and the folder is renamed.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from compress.base.errors import InputError, UsageError
from compress.base.outputs import Output, beside, require_outputs
from compress.base.progress import progress_bar

_CHUNK_BYTES = 1 << 20
_BAR_FROM_BYTES = 1 << 30
_CLOCK_TICK_S = 0.1  # file systems note times of change in ticks of up to some 10 ms
_hashes: dict[tuple[int, ...], str] = {}
"""SHA-256 by device, inode, size and times of change, for as long as the process lives."""

Damaged = Literal["refused", "last left out", "end"]


def sha256_file(path: Path, stop: threading.Event | None = None) -> str:
    """SHA-256 of a file's content, in hex; a file that did not change since it was last asked for is not read again.

    Raises:
        CancelledError: `stop` was set meanwhile, by another thread.
    """
    stat = path.stat()
    if (known := _hashes.get(_state(stat))) is not None:
        return known
    asked, found = time.time(), _read_hash(path, stop)
    quiet = asked - max(stat.st_mtime, stat.st_ctime) > _CLOCK_TICK_S  # else a later write may bear the same time
    if quiet and _state(path.stat()) == _state(stat):
        _hashes[_state(stat)] = found
    return found


def _state(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _read_hash(path: Path, stop: threading.Event | None) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK_BYTES))  # one for all: a fresh one each time costs as much as the hash
    size = path.stat().st_size
    with (
        path.open("rb", buffering=0) as file,
        progress_bar(f"SHA-256 of {path}", size, unit="bytes", visible=size >= _BAR_FROM_BYTES) as bar,
    ):
        while count := file.readinto(buffer):
            if stop is not None and stop.is_set():
                raise CancelledError
            digest.update(buffer[:count])
            bar.advance(count)
    return digest.hexdigest()


def sha256_tree(folder: Path, pattern: str = "**/*") -> dict[str, str]:
    """SHA-256 of each file under `folder`, keyed by its POSIX path inside it, in sorted order."""
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def sha256_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON: the fingerprint of a config or of a table of hashes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def fsync_path(path: Path) -> None:
    """Force a file's content, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Force every file and folder below `folder`, and the folder itself, to the disk."""
    for root, _, files in os.walk(folder):
        for name in files:
            fsync_path(Path(root, name))
        fsync_path(Path(root))


def unfinished(path: Path) -> Path:
    """Where a file or folder grows until it is whole: a name that nobody else gives to anything."""
    return beside(path, f"{path.name}.compress-partial")


def free_bytes(path: Path) -> int:
    """Bytes that are free where `path` is, or would be made."""
    place = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
    return shutil.disk_usage(place).free


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole: readers, and a full disk, see the old content or the new, never a mixture.

    What is no Unicode (half a surrogate pair, from a broken record or a file name) is written as its escape.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = unfinished(path)
    partial.unlink(missing_ok=True)
    try:
        with partial.open("x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """`write_text` of JSON lines, one a row."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing, unreadable or not JSON; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error


def read_rows(path: Path, *, damaged: Damaged = "refused") -> list[Any]:
    """The values of a file of JSON lines.

    A newline ends a line, and not U+0085, U+2028 and their like, which stand unescaped in JSON strings.

    `damaged` says what becomes of a line that is no JSON:

    - refused: it is an error
    - last left out: the last one is left out if no newline ends it, since a killed process was writing it; others are
      errors
    - end: the file counts up to the first one, since the machine may have failed before all of it was on the disk

    Raises:
        InputError: a damaged line, as above; the message names the file and the line.
    """
    rows: list[Any] = []
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line.decode()))
        except (ValueError, RecursionError) as error:
            torn = number == len(lines) and not line.endswith((b"\n", b"\r"))
            if damaged == "end" or (damaged == "last left out" and torn):
                break
            raise InputError(f"{path}, line {number} is not JSON: {error}.") from error
    return rows


@contextmanager
def owned(folder: Path) -> Iterator[int]:
    """Create a folder if need be, and keep every other process out of it while the block runs.

    Folders that it created, and that nothing was put into, go again. The lock goes with the process, however it
    ends, and with those that were given the descriptor that is yielded. A file system that knows no locks gives none.

    Raises:
        UsageError: another process has the folder.
    """
    created = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"Another process is writing to {folder} now; wait for it, stop it, or name another output."
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL):
                raise
        yield descriptor
    finally:
        for place in created:
            with suppress(OSError):  # it is not empty, or was renamed
                place.rmdir()
        os.close(descriptor)


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """Yield a folder beside `out` to write into; on success it becomes `out`, on failure it is removed.

    Raises:
        UsageError: `out` is not free, or another process is writing it.
    """
    partial = unfinished(out)
    begun = Output(partial, "an unfinished folder", lambda _: True, folder=True)
    require_outputs(Output(out, "a folder", ours=None, folder=True), begun)
    with owned(partial):
        clear_folder(partial)
        try:
            yield partial
            publish_folder(partial, out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def clear_folder(folder: Path) -> None:
    """Remove everything inside a folder."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def publish_folder(partial: Path, out: Path) -> None:
    """Fsync a finished `partial` folder and rename it to `out` (which may exist only as an empty folder)."""
    fsync_tree(partial)
    if out.is_dir():
        out.rmdir()
    os.replace(partial, out)
    fsync_path(out.absolute().parent)
