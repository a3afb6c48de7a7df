"""Rows out of parquet and Arrow IPC files."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from compress.base.errors import InputError
from compress.data.sources.instructions import Asked, Form, conversation_or_fault, how_to_say
from compress.data.sources.rows import Row, decode

_BATCH_ROWS = 256


def parquet_form(file: BinaryIO, asked: Asked) -> Form | None:
    """The form of the rows of an open parquet file, by its columns."""
    import pyarrow.parquet as pq

    return asked.find(pq.ParquetFile(file).schema_arrow.names)


def arrow_form(file: BinaryIO, asked: Asked, size: int) -> Form | None:
    """The form of the rows of an open Arrow file, by its columns."""
    return asked.find(_arrow(file, size)[0].names)


def parquet_rows(file: BinaryIO, name: str, form: Form, start: int) -> Iterator[Row]:
    """The rows of an open parquet file from row `start` on; errors as `read_rows`."""
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file)
    columns = _columns(table.schema_arrow, name, form)
    first, total = 0, max(table.metadata.num_rows, 1)
    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        if first + rows > start:
            index = first
            for batch in table.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
                values = _as_bytes(batch.column(0)) if form.is_text else batch
                yield from _rows(values, form, index, start, total)
                index += batch.num_rows
        first += rows


def arrow_rows(file: BinaryIO, name: str, form: Form, start: int, size: int) -> Iterator[Row]:
    """The rows of an open Arrow file, or stream, from row `start` on; errors as `read_rows`."""
    schema, batches = _arrow(file, size)
    columns = _columns(schema, name, form)
    index = 0
    for batch in batches:
        wanted = batch.select(columns)
        values = _as_bytes(wanted.column(0)) if form.is_text else wanted
        values.validate(full=True)
        for offset in range(0, len(values), _BATCH_ROWS):
            part = values.slice(offset, _BATCH_ROWS)
            yield from _rows(part, form, index, start, None)
            index += len(part)


def _arrow(file: BinaryIO, size: int) -> tuple[Any, Iterator[Any]]:
    """The schema and the record batches of an open file."""
    import pyarrow as pa

    magic = file.read(6)
    file.seek(0)
    if magic == b"ARROW1":
        reader = pa.ipc.open_file(file)
        return reader.schema, (reader.get_batch(i) for i in range(reader.num_record_batches))
    reader = pa.ipc.open_stream(_Bounded(file, size))
    return reader.schema, iter(reader)


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


def _columns(schema: Any, name: str, form: Form) -> list[str]:
    """Those of a form's columns that there are.

    Raises:
        InputError: one is missing, or the text column holds something other than text.
    """
    import pyarrow as pa

    for column in form.required:
        if column not in schema.names:
            raise InputError(f"{name} has no column {column!r}; it has {', '.join(schema.names)}. {how_to_say(form)}")
    if form.is_text:
        kind = schema.field(form.columns[0]).type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if str(value) not in ("string", "large_string", "string_view"):
            raise InputError(f"{name}: the column {form.columns[0]!r} holds {kind}, not text. {how_to_say(form)}")
    return [column for column in form.columns if column in schema.names]


def _rows(values: Any, form: Form, first: int, start: int, total: int | None) -> Iterator[Row]:
    """Rows of a binary array of texts, or of a record batch, whose first is row `first`.

    Texts are decoded one by one, so that one bad value is one row.
    """
    for index, value in enumerate(values.to_pylist(), first):
        if index < start:
            continue
        progress = (index + 1) / total if total else 0.0
        yield Row(index, *(_text(value) if form.is_text else conversation_or_fault(value, form)), progress)


def _text(value: bytes | None) -> tuple[str | None, str | None]:
    return (None, "is null") if value is None else decode(value)


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
