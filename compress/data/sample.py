"""A text as token ids, without a token store: for measuring and counting, where preparing one would be too much."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from compress.base.disk import sha256_json
from compress.base.errors import InputError
from compress.base.progress import say, say_once
from compress.base.signals import StopRequest
from compress.data.config import DataConfig
from compress.data.sources.sources import Source, find_source
from compress.data.sources.stream import Position, Retry, batches, texts
from compress.data.store.encode import Ids, Pictured
from compress.data.store.index import INDEX
from compress.data.store.layout import TextRows
from compress.data.store.marks import ids_of
from compress.data.store.store import TokenStore
from compress.data.store.way import Way, find_way
from compress.model.framing import Framing
from compress.model.load import load_tokenizer
from compress.model.tokenizer import tokenizer_spec

_UNCUT = 2**28
"""Tokens of a row that no conversation fills."""


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
    there are enough, see `RowLayout`; conversations whole, see `WholeRows`. Copies of a document count once.

    n is less only where the source is shorter, and S where it is shorter than a row. Rows without readable text, or
    without an answer, are skipped and counted.

    Raises:
        InputError: the source does not exist, has no text column, or holds no text.
    """
    lengths: dict[str, int] = {}
    skipped: list[str] = []
    tokens = 0
    way, source, retry = _opened(_of_text(name, text_column, seq_len), tokenizer)
    source.unread.tell(name)
    if said := way.describe():
        say_once(said)
    encoder, layout = way.encoder(framing), way.layout(framing)
    with closing(way.items(source, Position(0, 0), retry)) as items:
        for item in items:
            text = item.row.text or ""
            found = encoder([text])[0] if item.is_document and text not in lengths else item.row.fault
            if isinstance(found, str):
                skipped.append(found)
            elif found is not None:
                lengths[text] = len(found)
                tokens += layout.gives(lengths[text])
            if tokens >= num_rows * seq_len:
                break
    while tokens < num_rows * seq_len and not all(map(layout.is_whole, lengths.values())):
        layout = layout.wider()
        tokens = sum(map(layout.gives, lengths.values()))
    if skipped:
        say(f"{name}: {len(skipped)} rows without readable text were skipped, the first of which {skipped[0]}.")
    if tokens < 2:
        raise InputError(f"{name} holds no text to score.")
    return layout.rows(lengths, encoder, num_rows)


@functools.cache
def framing_for(name: str, text_column: str, reader: Path) -> Framing:
    """How the model in the folder `reader` reads a SOURCE best: the framing that a token store of it would have."""
    way, source, retry = _opened(_of_text(name, text_column, 2), load_tokenizer(reader))
    return way.framing(source, reader, retry)[0]


class Documents:
    """The documents of one source, whole: texts, or conversations as they are laid out for a training.

    Raises:
        InputError: (from the start, or while reading) the source cannot be used.
    """

    def __init__(self, config: DataConfig, tokenizer: Any) -> None:
        """`config` names one source, of which all is read, whatever its `tokens` and `seq_len` say."""
        config = dataclasses.replace(config, tokens=config.tokens or 1, seq_len=_UNCUT, too_long="cut")
        self._way, self._source, self._retry = _opened(config, tokenizer)
        self._encoder = self._way.encoder(Framing())

    def batches(self) -> Iterator[list[str]]:
        """The documents in order, some at a time."""
        with closing(self._way.items(self._source, Position(0, 0), self._retry)) as items:
            yield from map(texts, batches(items))

    def encode(self, documents: Sequence[str]) -> list[Ids | None]:
        """The ids of each, EOS at its end; None of a conversation that cannot be laid out."""
        return [None if isinstance(found, str | Pictured) else ids_of(found) for found in self._encoder(documents)]


def _of_text(name: str, text_column: str, seq_len: int) -> DataConfig:
    return DataConfig(dataset=name, text_column=text_column, tokens=1, seq_len=seq_len)


def _opened(config: DataConfig, tokenizer: Any) -> tuple[Way, Source, Retry]:
    (name,) = config.datasets
    source, retry = find_source(config), Retry(StopRequest())
    retry.call(name, source.connect)
    return find_way(config, source, tokenizer, tokenizer_spec(tokenizer), retry), source, retry


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
