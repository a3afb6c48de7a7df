"""Held-out rows of tokens, from a token store or from raw text."""

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress.data import INDEX, TokenStore, read_start
from compress.evaluate.config import EvalConfig
from compress.inference.readout import Checkpoint
from compress.model.lengths import fit
from compress.model.vocabulary import check_store


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
    if not (Path(text) / INDEX).is_file():
        length, _ = fit("Held-out rows", config.heldout_seq_len, 0, checkpoint.context)
        return _raw_rows(str(text), checkpoint, config, length)
    store = TokenStore.open(Path(text))
    check_store(store, checkpoint.tokenizer, checkpoint.name, context=checkpoint.context)
    count = min(config.heldout_sequences, store.num_heldout)
    return Heldout(store.heldout(count), store.heldout_bytes(count))


def _raw_rows(name: str, checkpoint: Checkpoint, config: EvalConfig, length: int) -> Heldout:
    wanted = config.heldout_sequences * length
    all_ids, all_sizes = read_start(name, checkpoint.tokenizer, wanted, config.text_column)
    tokens = len(all_ids)
    length = min(length, tokens)
    count = min(tokens, wanted) // length
    ids, sizes = (column[: count * length].reshape(count, length) for column in (all_ids, all_sizes))
    return Heldout(ids, int(sizes[:, 1:].sum()))
