"""The copy of the weights: every byte is read once and goes to the files of all students that keep it.

Reading (with the search for NaN and infinity), hashing, writing and flushing run on threads of their own, a few
buffers apart: each leaves Python's lock alone while it works on a buffer, so together they take as long as the
slowest, which is the disk. Flushing begins with the first bytes, since a disk that waits for the last is idle until
then. Memory is the buffers.
"""

import math
import os
import queue
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol

from compress.base.errors import InputError
from compress.base.progress import progress_bar
from compress.weights.casting import require_finite
from compress.weights.headers import StoredTensor
from compress.weights.output import Piece, Sharing, StudentFiles
from compress.weights.shards import StudentTensor, split

_BUFFER_BYTES = 1 << 23
_SPARE_BUFFERS = 3


class Files(Protocol):
    """Where the teacher's bytes come from."""

    readers: int
    """How many threads read at once."""

    def read(self, path: Path, start: int, into: memoryview) -> int:
        """Fill `into` with the bytes of a file from `start` on; returns how many there were.

        Raises:
            OSError: they cannot be read; it names the file.
        """


class LocalFiles:
    """Files on this machine."""

    readers = 2

    def read(self, path: Path, start: int, into: memoryview) -> int:
        done = 0
        with path.open("rb", buffering=0) as file:
            try:
                while done < len(into) and (count := os.preadv(file.fileno(), [into[done:]], start + done)):
                    done += count
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error
        return done


class Copying:
    """A copy under way, from its creation on. Leaving its context early stops it.

    `students` are folders and the tensors that go into them; `files` says where their bytes come from when not from
    the files they name.

    Raises:
        InputError: (from `finish`) a tensor holds NaN or infinity or does not fit the dtype it is cast to, or its file
            ends early; the message names both.
        OSError: the disk is full.
    """

    def __init__(
        self,
        students: Sequence[tuple[Path, Sequence[StudentTensor]]],
        files: Files | None = None,
        *,
        max_shard_bytes: int = 5 * 10**9,
        link: bool = False,
    ) -> None:
        self._files = files or LocalFiles()
        sharing: Sharing = "no" if files else "link" if link else "clone"
        self._students = [
            StudentFiles(folder, split(tensors, max_shard_bytes), sharing) for folder, tensors in students
        ]
        self._spans = list(_spans([tensor for _, tensors in students for tensor in tensors]))
        self._copied = 0
        self._stop = threading.Event()
        self._buffers: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        self._thread = ThreadPoolExecutor(1, "copy")
        self._running = self._thread.submit(self._run)

    def finish(self) -> list[dict[str, str]]:
        """Wait until all weights are on the disk; SHA-256 by file name, for each student."""
        total = sum(span.num_bytes for span in self._spans)
        with progress_bar("copying weights", total, unit="bytes") as bar:
            shown = 0
            while not self._running.done():
                wait([self._running], timeout=0.1)
                copied = self._copied
                bar.advance(copied - shown)
                shown = copied
        self._running.result()
        return [student.sha256() for student in self._students]

    def __enter__(self) -> "Copying":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """End the copy, whether it is finished or not, and wait for its threads."""
        self._stop.set()
        self._thread.shutdown(wait=True)

    def _run(self) -> None:
        abandoned = True  # until all is delivered: what fails or is stopped leaves files that nobody will read
        try:
            with ThreadPoolExecutor(self._files.readers, "read") as readers:
                for span, buffer in self._read_ahead(readers):
                    self._deliver(span, buffer)
            abandoned = self._stop.is_set()
        finally:
            self._stop.set()
            for student in self._students:
                student.close(abandoned=abandoned)

    def _read_ahead(self, readers: ThreadPoolExecutor) -> Iterator[tuple["_Span", bytearray]]:
        """The spans with their bytes, in order; the next ones are being read meanwhile."""
        # So many buffers are all the memory there is: reading waits for one that the students are done with.
        size = max((span.num_bytes for span in self._spans), default=0)
        for _ in range(min(self._files.readers + _SPARE_BUFFERS, len(self._spans))):
            self._buffers.put(bytearray(size))
        # Spans are handed on in order, whichever is read first; a None after the last for each that is still ahead.
        ahead: deque[tuple[_Span, bytearray, Future[None]]] = deque()
        for span in [*self._spans, *[None] * self._files.readers]:
            if self._stop.is_set():
                return
            if span is not None:
                buffer = self._buffers.get()
                ahead.append((span, buffer, readers.submit(self._read, span, buffer)))
            if ahead and (span is None or len(ahead) > self._files.readers):
                oldest, buffer, reading = ahead.popleft()
                reading.result()
                yield oldest, buffer

    def _read(self, span: "_Span", buffer: bytearray) -> None:
        if self._stop.is_set():
            return
        view = memoryview(buffer)[: span.num_bytes]
        if (count := self._files.read(span.path, span.start, view)) != len(view):
            tensor = next(piece.tensor for piece in span.pieces if piece.last > count)
            raise InputError(f"{span.path} ends inside the tensor {tensor.name}: download it again.")
        for piece in span.pieces:
            require_finite(view[piece.first : piece.last], piece.tensor)

    def _deliver(self, span: "_Span", buffer: bytearray) -> None:
        """Hand a buffer to the students; it is free again when the last of them is done with it."""
        # Each span has a tensor that some student keeps, so there is a job, and the last one gives the buffer back.
        jobs = [job for student in self._students for job in student.take(buffer, span.pieces)]
        left = len(jobs)
        lock = threading.Lock()

        def done(_: Future[None]) -> None:
            nonlocal left
            with lock:
                left -= 1
                if left == 0:
                    self._buffers.put(buffer)

        for job in jobs:
            job.add_done_callback(done)
        self._copied += span.num_bytes
        for student in self._students:
            student.raise_failure()


class _Span(NamedTuple):
    """Bytes of a file that are read at once, and the tensors they belong to."""

    path: Path
    start: int
    pieces: tuple[Piece, ...]

    @property
    def num_bytes(self) -> int:
        return self.pieces[-1].last


def _spans(tensors: Sequence[StudentTensor]) -> Iterator[_Span]:
    """The teacher's bytes that the students' tensors need, each once, in the order of files and bytes.

    Neighbours are read together. A tensor is parted at multiples of what its changes take.
    """
    # Students of one teacher may change a tensor differently: parts suit all of them.
    grains: dict[StoredTensor, int] = {}
    for tensor in tensors:
        grains[tensor.source] = math.lcm(grains.get(tensor.source, 8), tensor.grain)
    # A span grows while the next part follows in the same file and there is room in a buffer.
    pieces: list[Piece] = []
    path, start = Path(), 0
    for stored, first, size in _parts(grains):
        last = pieces[-1].last if pieces else 0
        adjacent = path == stored.path and start + last == stored.start + first
        if pieces and not (adjacent and last + size <= _BUFFER_BYTES):
            yield _Span(path, start, tuple(pieces))
            pieces, last = [], 0
        if not pieces:
            path, start = stored.path, stored.start + first
        pieces.append(Piece(stored, last, last + size))
    if pieces:
        yield _Span(path, start, tuple(pieces))


def _parts(grains: Mapping[StoredTensor, int]) -> Iterator[tuple[StoredTensor, int, int]]:
    """(tensor, first byte in it, bytes) in reading order; the parts of a tensor are multiples of its grain."""
    for stored in sorted(grains, key=lambda tensor: tensor.place):
        grain = grains[stored]
        step = max(grain, _BUFFER_BYTES // grain * grain)
        for first in range(0, stored.num_bytes, step):
            yield stored, first, min(step, stored.num_bytes - first)
