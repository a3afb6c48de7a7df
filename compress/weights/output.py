"""The weight files of one student, hashed and written as their bytes come."""

import fcntl
import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compress.base.disk import sha256_file, write_json
from compress.weights.headers import StoredTensor
from compress.weights.shards import Rows, Shard, index_json

Sharing = Literal["no", "clone", "link"]
"""How a student's file may share bytes on the disk with the teacher's that it repeats."""
_FLUSH_BYTES = 1 << 26
_CLONE_FILE = 0x40049409  # Linux's FICLONE: one file's blocks become another's too, until either is changed


@dataclass(frozen=True)
class Piece:
    """Bytes of one of the teacher's tensors: those of a buffer from `first` to before `last`."""

    tensor: StoredTensor
    first: int
    last: int


class StudentFiles:
    """The files of one student, written in order: one thread hashes, one writes, one flushes.

    Files of the right size with their headers are there from the start, so that the student can be loaded for its
    shapes while its numbers are still on their way.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], sharing: Sharing) -> None:
        self._folder, self._shards = folder, shards
        self._outputs = [_Output(folder / shard.name, shard, sharing) for shard in shards]
        self._places = {
            tensor.source: (output, tensor)
            for output, shard in zip(self._outputs, shards, strict=True)
            for tensor in shard.tensors
        }
        if len(shards) > 1:
            write_json(self._index, index_json(shards))
        self._hasher, self._writer, self._flusher = (ThreadPoolExecutor(1, name) for name in ("hash", "write", "flush"))
        self._jobs: deque[Future[None]] = deque()

    @property
    def _index(self) -> Path:
        return self._folder / "model.safetensors.index.json"

    def take(self, buffer: bytearray, pieces: Sequence[Piece]) -> list[Future[None]]:
        """Hash and write what this student keeps of a buffer's pieces, changed where it changes them."""
        # Hashing and writing only read the bytes, so both may have them at once. Each is one thread, so the order of
        # bytes is the order in which they are handed over.
        jobs: list[Future[None]] = []
        for output, data in self._kept(memoryview(buffer), pieces):
            jobs.append(self._hasher.submit(output.digest.update, data))
            jobs.append(self._writer.submit(self._write, output, data))
        self._jobs.extend(jobs)
        return jobs

    def _kept(self, buffer: memoryview, pieces: Sequence[Piece]) -> Iterator[tuple["_Output", Rows]]:
        """Bytes in order with the file they go to; neighbours that go unchanged into the same file are together."""
        output, first, last = None, 0, 0  # bytes that are not handed on yet, and the file they go to
        for piece in pieces:
            target, tensor = self._places.get(piece.tensor, (None, None))
            change = tensor.change if tensor else None
            # What is changed, not kept, for another file or not next to them ends the bytes that go together.
            if output and (change or target is not output or piece.first != last):
                yield output, buffer[first:last]
                output = None
            if target and change:
                yield target, change(buffer[piece.first : piece.last])
            elif target:
                first = first if output else piece.first
                output, last = target, piece.last
        if output:
            yield output, buffer[first:last]

    def _write(self, output: "_Output", data: Rows) -> None:
        if output.write(data) >= _FLUSH_BYTES:
            output.unflushed = 0
            self._jobs.append(self._flusher.submit(output.flush))

    def raise_failure(self) -> None:
        """Raise what a finished job failed with, if one did."""
        while self._jobs and self._jobs[0].done():
            self._jobs.popleft().result()

    def close(self, *, abandoned: bool) -> None:
        """End the threads and close the files, all on the disk by then unless `abandoned`."""
        # In this order: what is written asks for flushes. Only then are files closed that no thread holds.
        for pool in (self._hasher, self._writer, self._flusher):
            pool.shutdown(wait=True, cancel_futures=abandoned)
        try:
            if not abandoned:
                self.raise_failure()
                for output in self._outputs:
                    output.flush()
        finally:
            for output in self._outputs:
                output.close()

    def sha256(self) -> dict[str, str]:
        """SHA-256 by file name, of all that was taken."""
        found = {output.path.name: output.digest.hexdigest() for output in self._outputs}
        return found | ({self._index.name: sha256_file(self._index)} if self._index.exists() else {})


class _Output:
    """One file. What it shares with the teacher's, as a link or block by block, is hashed and not written."""

    def __init__(self, path: Path, shard: Shard, sharing: Sharing) -> None:
        self.path, self.unflushed = path, 0
        start = shard.start()
        self.digest = hashlib.sha256(start)
        # A shared file is complete: it has no descriptor, and `write` does nothing.
        self._descriptor: int | None = None
        if shard.whole is not None and _share(shard.whole.resolve(), path, sharing):
            return
        # At full size from the start, for those who load the model's shapes meanwhile.
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.truncate(self._descriptor, len(start) + shard.num_bytes)
        self.write(start)

    def write(self, data: Rows) -> int:
        """Append; returns the bytes written since the last flush."""
        view = memoryview(data)
        while self._descriptor is not None and len(view):
            count = os.write(self._descriptor, view)
            view = view[count:]
            self.unflushed += count
        return self.unflushed

    def flush(self) -> None:
        """Wait until what was written is on the disk."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _share(source: Path, target: Path, sharing: Sharing) -> bool:
    """Let `target` have the bytes of `source` without copying them; whether it does.

    A file system that can clone keeps the two apart when one is changed. A hard link does not, and is made only where
    it is asked for.
    """
    if sharing == "no":
        return False
    with source.open("rb") as old, target.open("wb") as new:
        try:
            fcntl.ioctl(new.fileno(), _CLONE_FILE, old.fileno())
        except OSError:
            pass
        else:
            return True
    target.unlink()
    try:
        if sharing == "link":
            os.link(source, target)
        return sharing == "link"
    except OSError:  # another disk, or no right to link a file of someone else's
        return False
