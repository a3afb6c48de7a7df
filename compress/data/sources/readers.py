"""Rows out of one data file: parquet, Arrow IPC, JSON lines or an array, text lines; plain, gzip or zstd.

A reader never holds more than a batch of rows, or one line or element of at most `MAX_ROW_BYTES`. What is wrong with
one row (null, not a string, bad UTF-8, a broken line of JSON) becomes that row's `fault`; what ends the file early
(truncation, a corrupt block, a broken element of an array) is raised as it is, after the rows before it.
"""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO, NamedTuple

from compress.base.errors import InputError
from compress.data.sources.decompress import decompressed
from compress.data.sources.instructions import Asked, Form, conversation_or_fault, how_to_say
from compress.data.sources.json_files import MAX_ROW_BYTES, begins_as_array, elements
from compress.data.sources.rows import Row, decode
from compress.data.sources.tables import arrow_form, arrow_rows, parquet_form, parquet_rows

FORMATS = (
    "parquet, arrow, jsonl (.jsonl, .ndjson, .json; a .json may be an array of objects) or txt, the last two also .gz "
    "and .zst"
)
_LINE_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".txt": "txt"}
_TABLE_FORMATS = {".parquet": "parquet", ".arrow": "arrow"}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
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


def find_form(file: BinaryIO, layout: Layout, asked: Asked, size: int) -> Form | None:
    """The form of the rows of an open file, by its columns or by the keys of its first rows.

    Raises:
        Exception: whatever the decoder raises where the file is damaged.
    """
    if layout.format == "parquet":
        return parquet_form(file, asked)
    if layout.format == "arrow":
        return arrow_form(file, asked, size)
    if layout.format == "txt":
        return asked.find((asked.text_column,))
    keys: dict[str, None] = {}
    for row in islice(_raw_json(file, layout, 0, max(size, 1)), _COLUMN_PATIENCE_ROWS):
        value, _ = _parsed(row.text or "")
        if isinstance(value, dict):
            keys.update(dict.fromkeys(value))
        if found := asked.find(keys):
            return found
    return None


def read_rows(file: BinaryIO, name: str, layout: Layout, form: Form, *, start: int, size: int) -> Iterator[Row]:
    """The rows of an open file from row `start` on; blank lines of a line file count, but are not yielded.

    Raises:
        InputError: a column of the form is missing, or the text column holds something other than text.
        Exception: whatever the decoder raises where the file is damaged.
    """
    if layout.format == "parquet":
        return parquet_rows(file, name, form, start)
    if layout.format == "arrow":
        return arrow_rows(file, name, form, start, size)
    if layout.format == "txt" and not form.is_text:
        raise InputError(f"{name} holds plain text, which has no columns. {how_to_say(form)}")
    if layout.format == "txt":
        return _lines(file, layout.compression, start, max(size, 1))
    of_array = layout.format == "json" and begins_as_array(file, layout.compression)
    return _json_rows(_raw_json(file, layout, start, max(size, 1)), name, form, of_array=of_array)


def _raw_json(file: BinaryIO, layout: Layout, start: int, size: int) -> Iterator[Row]:
    """The lines of an open file of JSON, or the elements of its array, as text."""
    if layout.format == "json" and begins_as_array(file, layout.compression):
        return _elements(file, layout.compression, start, size)
    return _lines(file, layout.compression, start, size)


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
        text, fault = decode(raw)
        text = text and (text.removeprefix("\ufeff") if index == 0 else text).rstrip("\r\n")
        if fault or (text and not text.isspace()):
            yield Row(index, text, fault, progress)


def _elements(file: BinaryIO, compression: str | None, start: int, size: int) -> Iterator[Row]:
    """The elements of an array from element `start` on, decoded; one longer than `MAX_ROW_BYTES` is not held."""
    for index, raw in enumerate(elements(file, compression)):
        if index >= start:
            text, fault = (None, _too_long()) if raw is None else decode(raw)
            yield Row(index, text, fault, min(file.tell() / size, 1.0))


def _too_long() -> str:
    return f"is longer than {MAX_ROW_BYTES // 2**20} MiB"


def _json_rows(lines: Iterator[Row], name: str, form: Form, *, of_array: bool) -> Iterator[Row]:
    """The rows of JSON. What is no JSON is a bad line, but in an array nobody knows where it ends."""
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
        text, fault, keys = (None, f"is not a whole JSON object ({broken})", []) if broken else _text_in(value, form)
        found = found or set(form.required) <= set(keys)
        if keys and not found:
            seen.update(dict.fromkeys(keys))
            without += 1
            if without == _COLUMN_PATIENCE_ROWS:
                break
        yield Row(line.number, text, fault, line.progress)
    if without and not found:
        raise InputError(
            f"{name} has no {' and '.join(map(repr, form.required))} in any of its first {without} rows; they have "
            f"{', '.join(list(seen)[:20])}. {how_to_say(form)}"
        )


def _parsed(line: str) -> tuple[Any, str | None]:
    """The value of some JSON, or why it is none."""
    try:
        return json.loads(line), None
    except (ValueError, RecursionError) as error:
        return None, error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def _text_in(value: Any, form: Form) -> tuple[str | None, str | None, list[str]]:
    """The text or the conversation of a row of JSON, or what is wrong with it, and the keys it has."""
    if not isinstance(value, dict):
        return None, f"is a JSON {type(value).__name__}, not an object", []
    keys = list(value)
    if missing := [column for column in form.required if column not in value]:
        return None, f"has no {missing[0]!r}, only {', '.join(keys[:20]) or 'nothing'}", keys
    if not form.is_text:
        return *conversation_or_fault(value, form), keys
    text = value[form.columns[0]]
    if text is None:
        return None, "is null", keys
    if not isinstance(text, str):
        return None, f"holds {type(text).__name__}, not text", keys
    try:
        text.encode()
    except UnicodeEncodeError:
        return None, "holds half of a surrogate pair, which is not Unicode text", keys
    return text, None, keys
