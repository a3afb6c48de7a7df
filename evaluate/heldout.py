"""Held-out rows of tokens, from a token store or from raw text."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.artifacts import sha256_json
from compress.data import INDEX, DataConfig, TokenStore, find_source, tokenizer_fingerprint
from compress.data.encode import Encoder, tokenizer_spec
from compress.data.stream import Position, Retry, read_items
from compress.errors import InputError
from compress.evaluate.checkpoint import Checkpoint
from compress.evaluate.config import EvalConfig
from compress.progress import say
from compress.runtime import StopRequest


@dataclasses.dataclass(frozen=True)
class Heldout:
    """Rows of token ids [n, S], int64, and the UTF-8 bytes of text that their tokens 1..S-1 stand for."""

    rows: NDArray[np.int64]
    text_bytes: int


def load_heldout(text: str | Path, checkpoint: Checkpoint, config: EvalConfig) -> Heldout:
    """At most `heldout_sequences` rows: a token store's held-out part, or the start of a raw source.

    Raw documents are encoded as a token store's are (EOS after each, packed without gaps), in rows of
    `heldout_seq_len` tokens, or of the model's context when that is shorter; less text than a row is one short row.

    Raises:
        InputError: the store was made with another tokenizer or its rows exceed the model's context; the source does
            not exist, has no text column, or holds no text.
    """
    limit = getattr(checkpoint.model.config.get_text_config(), "max_position_embeddings", None)
    if not (Path(text) / INDEX).is_file():
        length = min(config.heldout_seq_len, limit or config.heldout_seq_len)
        return _raw_rows(str(text), checkpoint, config, length)
    store = TokenStore.open(Path(text))
    _check_store(store, text, checkpoint, limit)
    count = min(config.heldout_sequences, store.num_heldout)
    return Heldout(store.heldout(count), store.heldout_bytes(count))


def text_fingerprint(text: str | Path) -> dict[str, Any]:
    """What identifies the text: a store's content, that of local files, or the name of a hub dataset."""
    if (Path(text) / INDEX).is_file():
        return {"store": TokenStore.open(text).fingerprint}
    source = find_source(DataConfig(dataset=str(text), tokens=1))
    listing = source.listing()
    if listing["kind"] != "local":
        return listing
    files = {file["name"]: file["sha256"] for file in source.fingerprint(len(source.files))["files"]}
    return {"files": sha256_json(files)}


def _check_store(store: TokenStore, text: str | Path, checkpoint: Checkpoint, limit: int | None) -> None:
    if store.tokenizer_sha256 != tokenizer_fingerprint(checkpoint.tokenizer):
        raise InputError(
            f"The token store {text} was made with another tokenizer than {checkpoint.name} has. Prepare the text with "
            "this model's tokenizer, or give the raw text."
        )
    if limit is not None and store.seq_len > limit:
        raise InputError(
            f"The rows of {text} have {store.seq_len} tokens, and {checkpoint.name} reads at most {limit}. Prepare the "
            "text in shorter rows (data.seq_len), or give the raw text."
        )


def _raw_rows(name: str, checkpoint: Checkpoint, config: EvalConfig, length: int) -> Heldout:
    wanted = config.heldout_sequences * length
    encoder = Encoder(tokenizer_spec(checkpoint.tokenizer))
    source = find_source(DataConfig(dataset=name, tokens=max(wanted, 1)))
    retry = Retry(StopRequest())
    retry.call(name, source.connect)
    parts = []
    tokens = skipped = 0
    for item in read_items(source, config.text_column, Position(0, 0), retry):
        if tokens >= wanted:
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
    length = min(length, tokens)
    count = min(tokens, wanted) // length
    ids, sizes = (
        np.concatenate(column)[: count * length].reshape(count, length) for column in zip(*parts, strict=True)
    )
    return Heldout(ids.astype(np.int64), int(sizes[:, 1:].sum()))
