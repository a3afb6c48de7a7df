"""Rows out of one data file: parquet, Arrow IPC, JSON lines or an array, text lines; plain, gzip or zstd.

A reader never holds more than a batch of rows, or one line or element of at most `MAX_ROW_BYTES`. What is wrong with
one row (null, not a string, bad UTF-8, a broken line of JSON) becomes that row's `fault`; what ends the file early
(truncation, a corrupt block, a broken element of an array) is raised as it is, after the rows before it.
"""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from compress.base.errors import InputError
from compress.data.sources.decompress import decompressed
from compress.data.sources.json_files import MAX_ROW_BYTES, begins_as_array, elements

FORMATS = (
    "parquet, arrow, jsonl (.jsonl, .ndjson, .json; a .json may be an array of objects) or txt, the last two also .gz "
    "and .zst"
)
_LINE_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".txt": "txt"}
_TABLE_FORMATS = {".parquet": "parquet", ".arrow": "arrow"}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_TABLE_BATCH_ROWS = 256
_COLUMN_PATIENCE_ROWS = 100


class Layout(NamedTuple):
    """What a file's name says about its content."""

    format: str
    """parquet, arrow, jsonl, json (lines or an array, as its content says) or txt."""
    compression: str | None
    """gzip or zstd."""


class DataFile(NamedTuple):
    """One file of a source."""

    name: str
    """Path inside the source, POSIX."""
    layout: Layout
    size: int
    """Bytes; 0 when unknown."""


class Row(NamedTuple):
    """One row of a data file: its text, or what is wrong with it."""

    number: int
    """0-based among the rows of a table or an array, or among the lines of a file."""
    text: str | None
    fault: str | None = None
    progress: float = 0.0
    """Share of the file that has been read, 0 to 1."""


def layout_of(name: str) -> Layout | None:
    """The layout a file name stands for, or None when it is not a data file's."""
    stem, dot, suffix = name.lower().rpartition(".")
    compression = _COMPRESSIONS.get(dot + suffix)
    if compression:
        suffix = stem.rpartition(".")[2]
        line_format = _LINE_FORMATS.get("." + suffix)
        return Layout(line_format, compression) if line_format else None
    found = _TABLE_FORMATS.get("." + suffix) or _LINE_FORMATS.get("." + suffix)
    return Layout(found, None) if found and dot else None


def read_rows(file: BinaryIO, name: str, layout: Layout, column: str, *, start: int, size: int) -> Iterator[Row]:
    """The rows of an open file from row `start` on; blank lines of a line file count, but are not yielded.

    Raises:
        InputError: the text column is missing or holds something other than text.
        Exception: whatever the decoder raises where the file is damaged.
    """
    if layout.format == "parquet":
        return _parquet_rows(file, name, column, start)
    if layout.format == "arrow":
        return _arrow_rows(file, name, column, start, size)
    if layout.format == "json" and begins_as_array(file, layout.compression):
        return _json_rows(_elements(file, layout.compression, start, max(size, 1)), name, column, of_array=True)
    lines = _lines(file, layout.compression, start, max(size, 1))
    return lines if layout.format == "txt" else _json_rows(lines, name, column)


def _parquet_rows(file: BinaryIO, name: str, column: str, start: int) -> Iterator[Row]:
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file)
    _require_text_column(table.schema_arrow, name, column)
    first, total = 0, max(table.metadata.num_rows, 1)
    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        if first + rows > start:
            index = first
            for batch in table.iter_batches(_TABLE_BATCH_ROWS, row_groups=[group], columns=[column], use_threads=False):
                yield from _column_rows(_as_bytes(batch.column(0)), index, start, total)
                index += batch.num_rows
        first += rows


def _arrow_rows(file: BinaryIO, name: str, column: str, start: int, size: int) -> Iterator[Row]:
    import pyarrow as pa

    magic = file.read(6)
    file.seek(0)
    if magic == b"ARROW1":
        reader = pa.ipc.open_file(file)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        reader = pa.ipc.open_stream(_Bounded(file, size))
        batches = iter(reader)
    _require_text_column(reader.schema, name, column)
    index = 0
    for batch in batches:
        raw = _as_bytes(batch.column(column))
        for offset in range(0, len(raw), _TABLE_BATCH_ROWS):
            values = raw.slice(offset, _TABLE_BATCH_ROWS)
            yield from _column_rows(values, index, start, None)
            index += len(values)


class _Bounded:
    """A file of `size` bytes that is never asked for more than it has left.

    An Arrow stream says itself how long its parts are, and a damaged one may name more than any memory holds.
    """

    closed = False

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def read(self, count: int) -> bytes:
        """At most `count` bytes."""
        return self._file.read(min(count, self._size - self._file.tell()))

    def close(self) -> None:
        """Nothing: the file is closed by whoever opened it."""


def _require_text_column(schema: Any, name: str, column: str) -> None:
    import pyarrow as pa

    if column not in schema.names:
        raise InputError(
            f"{name} has no column {column!r}; it has {', '.join(schema.names)}. Set data.text_column to the one with "
            "the text."
        )
    kind = schema.field(column).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if str(value) not in ("string", "large_string", "string_view"):
        raise InputError(
            f"{name}: the column {column!r} holds {kind}, not text. Set data.text_column to the one with the text."
        )


def _as_bytes(values: Any) -> Any:
    """A column of text as binary values, none decoded yet.

    An Arrow file's buffers are taken as they are: offsets that a damaged one has are checked before they are followed.

    Raises:
        pyarrow.ArrowInvalid: they lead outside of the data.
    """
    import pyarrow as pa

    if pa.types.is_dictionary(values.type):
        return pa.DictionaryArray.from_arrays(values.indices, _as_bytes(values.dictionary)).dictionary_decode()
    binary = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}.get(values.type, pa.binary_view())
    raw = values.view(binary)
    raw.validate(full=True)
    return raw


def _column_rows(values: Any, first: int, start: int, total: int | None) -> Iterator[Row]:
    """Rows of a binary array whose first value is row `first`; decoded one by one, so that one bad value is one row."""
    for index, value in enumerate(values.to_pylist(), first):
        if index < start:
            continue
        text, fault = (None, "is null") if value is None else _decode(value)
        yield Row(index, text, fault, (index + 1) / total if total else 0.0)


def _decode(raw: bytes) -> tuple[str | None, str | None]:
    try:
        return raw.decode("utf-8"), None
    except UnicodeDecodeError as error:
        return None, f"is not UTF-8 (byte 0x{raw[error.start]:02x} at position {error.start})"


def _lines(file: BinaryIO, compression: str | None, start: int, size: int) -> Iterator[Row]:
    """Non-blank lines from line `start` on, decoded; one longer than `MAX_ROW_BYTES` is read past, not held."""
    stream = decompressed(file, compression)
    index = -1
    while raw := stream.readline(MAX_ROW_BYTES + 1):
        index += 1
        too_long = len(raw) > MAX_ROW_BYTES
        while too_long and raw and not raw.endswith(b"\n"):
            raw = stream.readline(2**20)
        if index < start:
            continue
        progress = min(file.tell() / size, 1.0)
        if too_long:
            yield Row(index, None, _too_long(), progress)
            continue
        text, fault = _decode(raw)
        text = text and (text.removeprefix("\ufeff") if index == 0 else text).rstrip("\r\n")
        if fault or (text and not text.isspace()):
            yield Row(index, text, fault, progress)


def _elements(file: BinaryIO, compression: str | None, start: int, size: int) -> Iterator[Row]:
    """The elements of an array from element `start` on, decoded; one longer than `MAX_ROW_BYTES` is not held."""
    for index, raw in enumerate(elements(file, compression)):
        if index >= start:
            text, fault = (None, _too_long()) if raw is None else _decode(raw)
            yield Row(index, text, fault, min(file.tell() / size, 1.0))


def _too_long() -> str:
    return f"is longer than {MAX_ROW_BYTES // 2**20} MiB"


def _json_rows(lines: Iterator[Row], name: str, column: str, *, of_array: bool = False) -> Iterator[Row]:
    """The texts of rows of JSON. What is no JSON is a bad line, but in an array nobody knows where it ends."""
    seen: dict[str, None] = {}
    without = 0
    found = False
    for line in lines:
        if line.text is None:
            yield line
            continue
        value, broken = _parsed(line.text)
        if broken and of_array:
            raise ValueError(broken)
        text, fault, keys = (None, f"is not a whole JSON object ({broken})", []) if broken else _text_in(value, column)
        found = found or column in keys
        if keys and not found:
            seen.update(dict.fromkeys(keys))
            without += 1
            if without == _COLUMN_PATIENCE_ROWS:
                break
        yield Row(line.number, text, fault, line.progress)
    if without and not found:
        raise InputError(
            f"{name} has no {column!r} in any of its first {without} rows; they have {', '.join(list(seen)[:20])}. Set "
            "data.text_column to the one with the text."
        )


def _parsed(line: str) -> tuple[Any, str | None]:
    """The value of some JSON, or why it is none."""
    try:
        return json.loads(line), None
    except (ValueError, RecursionError) as error:
        return None, error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def _text_in(value: Any, column: str) -> tuple[str | None, str | None, list[str]]:
    """The text of a row of JSON, or what is wrong with it, and the keys it has."""
    if not isinstance(value, dict):
        return None, f"is a JSON {type(value).__name__}, not an object", []
    keys = list(value)
    if column not in value:
        return None, f"has no {column!r}, only {', '.join(keys[:20]) or 'nothing'}", keys
    text = value[column]
    if text is None:
        return None, "is null", keys
    if not isinstance(text, str):
        return None, f"holds {type(text).__name__}, not text", keys
    try:
        text.encode()
    except UnicodeEncodeError:
        return None, "holds half of a surrogate pair, which is not Unicode text", keys
    return text, None, keys
