"""What a .json file holds: an array of objects, read one by one, JSON lines, or something that is no rows."""

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal, NamedTuple

from compress.data.sources.decompress import decompressed
from compress.data.sources.instructions import Asked

MAX_ROW_BYTES = 64 * 2**20
"""What is longer, a line or an element of an array, is read past and not held."""
CHUNK_BYTES = 2**18
_BOM = b"\xef\xbb\xbf"
_CODE = re.compile(rb'[^"\[\]{},]*+')
_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)

Kind = Literal["empty", "array", "lines", "object", "other"]


class Beginning(NamedTuple):
    """What a .json file begins with."""

    kind: Kind
    """object: one over several lines. lines: whole on the first. other: neither an array nor an object."""
    first: Any = None
    """The first row, an element or a line; None where there is none, or none that can be parsed."""

    def lacks(self, asked: Asked) -> str | None:
        """Why these are no rows of a form that is asked for, in a few words; None where they are.

        An array that is damaged in its first object has rows as far as one can know.
        """
        if self.kind == "empty":
            return "empty"
        if self.kind not in ("array", "lines") or not isinstance(self.first, dict):
            return None if (self.kind, self.first) == ("array", None) else "metadata"
        missing = " and ".join(map(repr, asked.first.required))
        return None if asked.find(self.first) else f"no {missing}, only {', '.join(list(self.first)[:5]) or 'nothing'}"

    def fault(self) -> str | None:
        """What is wrong with it as a file of rows, whatever their columns; None where nothing is known to be."""
        if self.kind == "object":
            return "is one JSON object over several lines, not rows"
        if self.kind == "other" or (self.kind == "array" and not isinstance(self.first, dict | None)):
            return f"holds JSON of type {type(self.first).__name__}, not objects"
        return None


def begins_as_array(file: BinaryIO, compression: str | None) -> bool:
    """Whether the first character of an open file opens a JSON array; the file is at its start again after."""
    found = _first_character(decompressed(file, compression)) == b"["
    file.seek(0)
    return found


def beginning(file: BinaryIO, compression: str | None) -> Beginning:
    """Look at the start of an open .json file, as far as the end of its first row.

    Raises:
        Exception: whatever the decoder raises where the file is damaged.
    """
    if begins_as_array(file, compression):
        return _first_of_array(file, compression)
    stream = decompressed(file, compression)
    line = _first_line(stream)
    if not line:
        return Beginning("empty")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        spans = line.lstrip().startswith(b"{") and _goes_on(line, stream.read(CHUNK_BYTES))
        return Beginning("object") if spans else Beginning("lines")
    return Beginning("lines" if isinstance(value, dict) else "other", value)


def elements(file: BinaryIO, compression: str | None) -> Iterator[bytes | None]:
    """The bytes of each element of an open file's JSON array; None for one longer than `MAX_ROW_BYTES`.

    Elements are told apart by brackets, commas and strings; whether one is JSON in itself is not looked at.

    Raises:
        ValueError, EOFError: the array ends otherwise than by its bracket and the end of the file.
    """
    stream = decompressed(file, compression)
    _first_character(stream)
    element, depth, quoted, first = _Element(), 0, False, True
    data = b""
    while chunk := stream.read(CHUNK_BYTES):
        data, at = data + chunk, 0
        while at < len(data):
            end = (_STRING if quoted else _CODE).match(data, at).end()  # type: ignore[union-attr]
            mark = data[end : end + 1]
            if mark in (b"", b"\\"):  # a backslash, at the end of what is here, waits for what it escapes
                element.add(data[at:end])
                at = end
                break
            closes = depth == 0 and not quoted and mark in b",]}"
            element.add(data[at : end if closes else end + 1])
            at = end + 1
            if mark == b'"':
                quoted = not quoted
            elif not closes:
                depth += (mark in b"[{") - (mark in b"]}")
            else:
                if mark != b"]" or not first or not element.is_blank():
                    yield element.take()
                first = False
                if mark != b",":
                    _require_end(data[at:], stream, mark)
                    return
        data = data[at:]
    if depth == 0 and not quoted and not element.is_blank():
        yield element.take()
    raise EOFError("the array does not end")


class _Element:
    """The bytes of an element as they come, and no more than the longest may have."""

    def __init__(self) -> None:
        self._held, self._too_long = bytearray(), False

    def add(self, part: bytes) -> None:
        self._held += part
        if len(self._held) > MAX_ROW_BYTES:
            self._held, self._too_long = bytearray(), True

    def is_blank(self) -> bool:
        return not self._too_long and not self._held.strip()

    def take(self) -> bytes | None:
        """What there is, for the next to begin."""
        found = None if self._too_long else bytes(self._held.strip())
        self._held, self._too_long = bytearray(), False
        return found


def _require_end(rest: bytes, stream: Any, mark: bytes) -> None:
    if mark != b"]" or rest.strip():
        raise ValueError("the array is followed by something else" if mark == b"]" else "an array ends with }")
    while more := stream.read(CHUNK_BYTES):
        if more.strip():
            raise ValueError("the array is followed by something else")


def _first_character(stream: Any) -> bytes:
    """Read to and with the first character that is neither white space nor a byte order mark; empty at the end."""
    head = stream.read(1)
    if head == _BOM[:1]:
        head = (head + stream.read(2)).removeprefix(_BOM) or stream.read(1)
    while head.isspace():
        head = stream.read(1)
    return bytes(head[:1])


def _first_line(stream: Any) -> bytes:
    """The first line with anything on it, as far as a row may reach."""
    line = stream.readline(MAX_ROW_BYTES).removeprefix(_BOM)
    while line and not line.strip():
        line = stream.readline(MAX_ROW_BYTES)
    return bytes(line)


def _first_of_array(file: BinaryIO, compression: str | None) -> Beginning:
    try:
        element = next(elements(file, compression), b"")
        return Beginning("array", json.loads(element)) if element else Beginning("empty" if element == b"" else "array")
    except (ValueError, EOFError, RecursionError):
        return Beginning("array")


def _goes_on(line: bytes, more: bytes) -> bool:
    """Whether an object that a line leaves open goes on after it, rather than being a line that is damaged."""
    text = (line + more).decode("utf-8", "replace")
    start = text.index("{")
    second = len(line.decode("utf-8", "replace"))
    second += len(text[second:]) - len(text[second:].lstrip())
    try:
        json.JSONDecoder().raw_decode(text, start)
    except json.JSONDecodeError as error:
        return error.pos > second
    except RecursionError:
        return False
    return True
