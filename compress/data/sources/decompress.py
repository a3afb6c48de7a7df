"""gzip and zstd as streams that notice where a file was cut."""

import gzip
import io
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_ZSTD_INPUT_BYTES = 4096  # a block of zstd expands at most about 32,000 times: 128 MiB at once at the very worst


def decompressed(file: BinaryIO, compression: str | None) -> io.BufferedIOBase | BinaryIO:
    """The content of `file`, whose compression is gzip, zstd or None."""
    if compression == "gzip":
        return gzip.GzipFile(fileobj=file)
    if compression == "zstd":
        return io.BufferedReader(_ZstdStream(file), 2**18)
    return file


class _ZstdStream(io.RawIOBase):
    """Concatenated zstd frames, decompressed; unlike zstandard's own reader it notices a truncated last frame."""

    def __init__(self, file: BinaryIO) -> None:
        import zstandard

        self._file = file
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
        self._frame: Any = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        while not self._output:
            if not self._refill():
                return 0
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(self._output))
        target[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def _refill(self) -> bool:
        data = self._input or self._file.read(_ZSTD_INPUT_BYTES)
        if not data:
            if self._frame is not None:
                raise EOFError("the file ends in the middle of a zstd frame")
            return False
        frame = self._frame or self._decompressor.decompressobj()
        self._output = memoryview(frame.decompress(data))
        self._input = frame.unused_data if frame.eof else b""
        self._frame = None if frame.eof else frame
        return True
