"""The start of a text as token ids, without a token store: for measuring, where preparing one would be too much."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.base.disk import sha256_json
from compress.base.errors import InputError
from compress.base.progress import say
from compress.base.signals import StopRequest
from compress.data.config import DataConfig
from compress.data.sources.sources import find_source
from compress.data.sources.stream import Position, Retry, read_items
from compress.data.store.encode import Encoder
from compress.data.store.store import INDEX, TokenStore
from compress.model.tokenizer import tokenizer_spec


def read_start(
    name: str, tokenizer: Any, num_tokens: int, text_column: str = "text"
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids [n] of the first documents of a SOURCE, EOS after each, and the UTF-8 bytes [n] that each id stands for.

    Whole documents are read until there are `num_tokens`; n is less only where the source is shorter. Rows without
    readable text are skipped and counted.

    Raises:
        InputError: the source does not exist, has no text column, or holds no text.
    """
    encoder = Encoder(tokenizer_spec(tokenizer))
    source = find_source(DataConfig(dataset=name, text_column=text_column, tokens=max(num_tokens, 1)))
    retry = Retry(StopRequest())
    retry.call(name, source.connect)
    source.unread.tell(name)
    parts = []
    tokens = skipped = 0
    for item in read_items(source, text_column, Position(0, 0), retry):
        if tokens >= num_tokens:
            break
        if item.row.text is None:
            skipped += item.row.fault is not None
            continue
        parts.append(encoder.with_bytes(item.row.text))
        tokens += len(parts[-1][0])
    if skipped:
        say(f"{name}: {skipped} rows without readable text were skipped.")
    if tokens < 2:
        raise InputError(f"{name} holds no text to score.")
    ids, sizes = (np.concatenate(column) for column in zip(*parts, strict=True))
    return ids.astype(np.int64), sizes


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
