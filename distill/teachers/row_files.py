"""Rows of bytes in files: appended in order, forced to the disk now and then, read through memory maps and checked.

FOLDER/rows-00000.bin    rows, one behind the other; the next file begins where one has `SHARD_BYTES` or more
FOLDER/rows.table        of each row its bytes (uint64) and their CRC-32 (uint32)
"""

import mmap
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from compress.base.disk import fsync_path, sha256_file
from compress.base.errors import InputError

SHARD_BYTES = 1 << 33
TABLE = "rows.table"
ENTRY = np.dtype([("bytes", "<u8"), ("crc", "<u4")])

Bytes = NDArray[np.uint8]


def shard_name(number: int) -> str:
    """Of a file of rows."""
    return f"rows-{number:05d}.bin"


class RowWriter:
    """Appends rows to the files of a folder, from the start or from what `save` returned.

    `shards` lists what is complete: {"file", "rows", "bytes", "sha256"}.

    Raises:
        InputError: the files are shorter than `state` says.
    """

    def __init__(self, folder: Path, state: Mapping[str, Any] | None = None) -> None:
        begun = state or {"shards": [], "rows": 0, "open_bytes": 0}
        self._folder = folder
        self.shards: list[dict[str, Any]] = list(begun["shards"])
        self.rows: int = begun["rows"]
        self._open_bytes: int = begun["open_bytes"]
        for path in folder.glob("rows-*.bin"):
            if path.name > shard_name(len(self.shards)):
                path.unlink()
        self._table = _reopened(folder / TABLE, self.rows * ENTRY.itemsize)
        self._file = _reopened(folder / shard_name(len(self.shards)), self._open_bytes)

    def append(self, rows: Iterable[Bytes]) -> None:
        """Add rows, each of any number of bytes."""
        for row in rows:
            self._file.write(row.data)
            self._table.write(np.array((row.nbytes, zlib.crc32(row.data)), ENTRY).tobytes())
            self.rows, self._open_bytes = self.rows + 1, self._open_bytes + row.nbytes
            if self._open_bytes >= SHARD_BYTES:
                self._complete()
                self._file = _reopened(self._folder / shard_name(len(self.shards)), 0)

    def save(self) -> dict[str, Any]:
        """Force everything to the disk and return what `__init__` needs to go on from here."""
        for file in (self._file, self._table):
            file.flush()
            os.fsync(file.fileno())
        return {"shards": list(self.shards), "rows": self.rows, "open_bytes": self._open_bytes}

    def finish(self) -> list[dict[str, Any]]:
        """Complete the last file; the entries of all."""
        self._table.close()
        if self._open_bytes:
            self._complete()
        else:
            self._file.close()
            (self._folder / shard_name(len(self.shards))).unlink()
        return self.shards

    def close(self) -> None:
        """Close the growing files; nothing is completed."""
        self._file.close()
        self._table.close()

    def _complete(self) -> None:
        self._file.close()
        path = self._folder / shard_name(len(self.shards))
        fsync_path(path)
        rows = self.rows - sum(shard["rows"] for shard in self.shards)
        entry = {"file": path.name, "rows": rows, "bytes": self._open_bytes, "sha256": sha256_file(path)}
        self.shards.append(entry)
        self._open_bytes = 0


def _reopened(path: Path, length: int) -> BinaryIO:
    """A growing file, cut back to its recorded length."""
    file = path.open("ab")
    if file.tell() < length:
        file.close()
        raise InputError(f"{path} is shorter than its record says. Remove {path.parent}: it is then made anew.")
    file.truncate(length)
    return file


class RowReader:
    """The rows of finished files, whose table has this SHA-256."""

    def __init__(self, folder: Path, shards: Sequence[Mapping[str, Any]], table_sha256: str) -> None:
        self._folder, self._table_sha256 = folder, table_sha256
        self._names = [shard["file"] for shard in shards]
        self._ends = np.cumsum([shard["rows"] for shard in shards])
        self._firsts = np.cumsum([0, *(shard["bytes"] for shard in shards)])

    def read(self, row: int) -> Bytes:
        """A copy of a row.

        Raises:
            InputError: it is not as it was written.
        """
        shard, place = self._place(row)
        found = np.frombuffer(self._maps[shard], np.uint8)[place].copy()
        if zlib.crc32(found.data) != self._table["crc"][row]:
            raise InputError(
                f"{self._folder / self._names[shard]} is damaged: row {row} is not as it was written. Remove "
                f"{self._folder}, and make it anew."
            )
        return found

    def will_need(self, rows: Iterable[int]) -> None:
        """Have the system read these rows ahead, without waiting for it."""
        for shard, place in map(self._place, rows):
            first = place.start - place.start % mmap.PAGESIZE
            self._maps[shard].madvise(mmap.MADV_WILLNEED, first, place.stop - first)

    def _place(self, row: int) -> tuple[int, slice]:
        """In which file a row lies, and where."""
        shard = int(np.searchsorted(self._ends, row, side="right"))
        stop = int(self._stops[row] - self._firsts[shard])
        return shard, slice(stop - int(self._table["bytes"][row]), stop)

    @cached_property
    def _table(self) -> NDArray[Any]:
        path = self._folder / TABLE
        if sha256_file(path) != self._table_sha256:
            raise InputError(f"{path} is not as it was written. Remove {self._folder}, and make it anew.")
        return np.fromfile(path, ENTRY)

    @cached_property
    def _stops(self) -> NDArray[np.uint64]:
        """[rows] where each row ends, all files joined."""
        return np.cumsum(self._table["bytes"], dtype=np.uint64)

    @cached_property
    def _maps(self) -> list[mmap.mmap]:
        maps = []
        for name in self._names:
            with (self._folder / name).open("rb") as file:
                maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return maps
