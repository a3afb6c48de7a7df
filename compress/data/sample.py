"""Rows of a text as token ids, without a token store: for measuring, where preparing one would be too much."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compress.base.disk import sha256_json
from compress.base.errors import InputError
from compress.base.progress import say
from compress.base.signals import StopRequest
from compress.data.config import DataConfig
from compress.data.sources.sources import find_source
from compress.data.sources.stream import Item, Position, Retry, read_items
from compress.data.store.encode import Encoder
from compress.data.store.framing import decide_framing
from compress.data.store.layout import RowLayout, TextRows
from compress.data.store.store import INDEX, TokenStore
from compress.model.framing import Framing
from compress.model.load import load_tokenizer
from compress.model.tokenizer import tokenizer_spec


def text_rows(
    name: str,
    tokenizer: Any,
    num_rows: int,
    seq_len: int,
    text_column: str = "text",
    *,
    framing: Framing,
) -> TextRows:
    """Rows [n, S] of the first documents of a SOURCE that give `num_rows` of `seq_len` tokens: one row a document while
    there are enough, see `RowLayout`. Copies of a document count once.

    n is less only where the source is shorter, and S where it is shorter than a row. Rows without readable text are
    skipped and counted.

    Raises:
        InputError: the source does not exist, has no text column, or holds no text.
    """
    encoder, layout = Encoder(tokenizer_spec(tokenizer), framing.documents), RowLayout(seq_len, framing.rows)
    lengths: dict[str, int] = {}
    skipped = tokens = 0
    with _items(name, text_column, tell=True) as items:
        for item in items:
            skipped += item.row.fault is not None
            if item.is_document and (text := item.row.text or "") not in lengths:
                lengths[text] = len(encoder([text])[0])
                tokens += layout.gives(lengths[text])
            if tokens >= num_rows * seq_len:
                break
    while tokens < num_rows * seq_len and not all(map(layout.is_whole, lengths.values())):
        layout = layout.wider()
        tokens = sum(map(layout.gives, lengths.values()))
    if skipped:
        say(f"{name}: {skipped} rows without readable text were skipped.")
    if tokens < 2:
        raise InputError(f"{name} holds no text to score.")
    return layout.rows(lengths, encoder, num_rows)


@functools.cache
def framing_for(name: str, text_column: str, reader: Path) -> Framing:
    """How the model in the folder `reader` reads a SOURCE best: the framing that a token store of it would have."""
    tokenizer = load_tokenizer(reader)
    with _items(name, text_column) as items:
        return decide_framing(items, tokenizer_spec(tokenizer), reader)[0]


@contextmanager
def _items(name: str, text_column: str, *, tell: bool = False) -> Iterator[Iterator[Item]]:
    source = find_source(DataConfig(dataset=name, text_column=text_column, tokens=1))
    retry = Retry(StopRequest())
    retry.call(name, source.connect)
    if tell:
        source.unread.tell(name)
    items = read_items(source, text_column, Position(0, 0), retry)
    try:
        yield items
    finally:
        items.close()


def text_fingerprint(text: str | Path, text_column: str = "text") -> dict[str, Any]:
    """What identifies the text: a store's content, that of local files, or the name of a hub dataset."""
    if (Path(text) / INDEX).is_file():
        return {"store": TokenStore.open(text).fingerprint}
    source = find_source(DataConfig(dataset=str(text), text_column=text_column, tokens=1))
    listing = source.listing()
    if listing["kind"] != "local":
        return listing
    files = {file["name"]: file["sha256"] for file in source.fingerprint(len(source.files))["files"]}
    return {"files": sha256_json(files)}
