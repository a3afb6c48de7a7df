"""What a GGUF file says of itself: its metadata and the table of its tensors. No weights are read.

The format is described in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import dataclasses
import math
import mmap
import struct
from pathlib import Path
from typing import Any

from compress.base.errors import InputError

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Formats of `struct`, by the number of a metadata value's type."""
_ALIGNMENT = 32


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor as the file has it."""

    name: str
    shape: tuple[int, ...]
    type: str
    """How its numbers are stored: F32, F16, Q8_0, Q4_K, ..."""
    bits: float
    """Bits of a number, scales of its block included."""


@dataclasses.dataclass(frozen=True)
class GgufHeader:
    """A file without its weights."""

    fields: dict[str, Any]
    """Metadata; of an array its length."""
    tensors: tuple[StoredTensor, ...]

    @property
    def numbers(self) -> int:
        """How many numbers its tensors hold."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)


def read_header(path: Path) -> GgufHeader:
    """The header of a GGUF file that is whole.

    Raises:
        InputError: it is no GGUF file of a version that is known here, or it is damaged or cut off.
    """
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise InputError(f"{path} is no GGUF file: it does not begin with {_MAGIC.decode()}. Download it again.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _Reader(content).header()
            except (struct.error, ValueError, OverflowError) as error:
                raise InputError(f"{path} is damaged, or not whole ({error}). Download it again.") from error


class _Reader:
    """Walks through a file's bytes; all numbers are little-endian."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._at = content, len(_MAGIC)

    def header(self) -> GgufHeader:
        version, tensors, fields = self._take("IQQ")
        if version not in _VERSIONS:
            raise ValueError(f"GGUF version {version}, and {' and '.join(map(str, _VERSIONS))} are read here")
        found = {}
        for _ in range(fields):
            name = self._string()
            found[name] = self._value(self._take("I")[0])
        table = [self._tensor() for _ in range(tensors)]
        alignment = found.get("general.alignment", _ALIGNMENT)
        start = -(-self._at // alignment) * alignment if isinstance(alignment, int) and alignment else self._at
        for tensor, offset in table:
            end = start + offset + math.prod(tensor.shape) * tensor.bits / 8
            if end > len(self._content):
                raise ValueError(f"{tensor.name} should end at byte {end:.0f} of {len(self._content)}")
        return GgufHeader(found, tuple(tensor for tensor, _ in table))

    def _take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{layout}", self._content, self._at)
        self._at += struct.calcsize(f"<{layout}")
        return values

    def _string(self) -> str:
        (length,) = self._take("Q")
        start, self._at = self._at, self._at + length
        if self._at > len(self._content):
            raise ValueError("a name reaches beyond its end")
        return self._content[start : self._at].decode()

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._pass_array()
        if kind not in _SCALARS:
            raise ValueError(f"a metadata value of the unknown type {kind}")
        return self._take(_SCALARS[kind])[0]

    def _pass_array(self) -> int:
        """Go past an array, and say how long it is."""
        kind, length = self._take("IQ")
        if kind in _SCALARS:
            self._at += length * struct.calcsize(f"<{_SCALARS[kind]}")
        elif kind == _STRING:
            for _ in range(length):
                (size,) = self._take("Q")
                self._at += size
        else:
            raise ValueError(f"an array of the type {kind}")
        return int(length)

    def _tensor(self) -> tuple[StoredTensor, int]:
        """A row of the table, and where its data begins among the data of all."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        name = self._string()
        shape = self._take(f"{self._take('I')[0]}Q")
        number, offset = self._take("IQ")
        kind = GGMLQuantizationType(number)
        numbers, size = GGML_QUANT_SIZES[kind]
        return StoredTensor(name, shape, kind.name, 8 * size / numbers), offset
