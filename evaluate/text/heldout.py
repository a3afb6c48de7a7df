"""Held-out rows of tokens, from a token store or from raw text."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.base.errors import InputError
from compress.data import INDEX, TokenStore, framing_for, text_rows
from compress.data.alignment import Retelling
from compress.data.store.marks import Marks, alone, read_marks
from compress.data.store.pictures import PictureReader
from compress.evaluate.config import EvalConfig
from compress.inference.readout import Checkpoint
from compress.model.framing import Framing
from compress.model.lengths import fit
from compress.model.vision import Inputs
from compress.model.vocabulary import check_store


@dataclasses.dataclass(frozen=True)
class Heldout:
    """Rows of token ids [n, S], int64, the UTF-8 bytes of text that their tokens 1..S-1 stand for, and the number
    [n, S] of each token's document."""

    rows: NDArray[np.int64]
    text_bytes: int
    documents: NDArray[np.int64]
    answers: NDArray[np.bool_] | None = None
    """[n, S]: of conversations, the tokens to score; None scores all."""
    sources: tuple[str, ...] | None = None
    """[n]: what the source of each row is called, where the text is a blend."""
    inputs: tuple[Inputs, ...] | None = None
    """[n]: what a vision-language model is given beside the ids of each row; None where rows have no images."""


def framing_of_text(text: str | Path, config: EvalConfig, reader: Path) -> Framing:
    """How the text is framed: a token store's own way, or as the model in the folder `reader` reads raw text best."""
    if (Path(text) / INDEX).is_file():
        return TokenStore.open(Path(text)).framing or Framing()
    return framing_for(str(text), config.text_column, reader)


def load_heldout(
    text: str | Path, checkpoint: Checkpoint, config: EvalConfig, framing: Framing, writer: Any | None = None
) -> Heldout:
    """At most `heldout_sequences` rows: a token store's held-out part, or rows of the start of a raw source.

    Of a raw source there is one row a document while there are enough, of `heldout_seq_len` tokens, or of the model's
    context when that is shorter; less text than a row is one short row. `writer` is the tokenizer that a token store
    was made with, where it is not the model's, which then reads the text in its own tokens (see `retold`).

    Raises:
        InputError: the store was made with another tokenizer or its rows exceed the model's context; the source does
            not exist, has no text column, or holds no text.
    """
    if not (Path(text) / INDEX).is_file():
        length, _ = fit("Held-out rows", config.heldout_seq_len, 0, checkpoint.context)
        count, column = config.heldout_sequences, config.text_column
        found = text_rows(str(text), checkpoint.tokenizer, count, length, column, framing=framing)
        marks = None if found.marks is None else read_marks(found.marks)
        return _heldout(found.ids.astype(np.int64), sum(found.text_bytes), found.documents, marks, None, apart=True)
    store = TokenStore.open(Path(text))
    if writer is None:
        check_store(store, checkpoint.tokenizer, checkpoint.name, context=checkpoint.context)
    count = min(config.heldout_sequences, store.num_heldout)
    rows, documents = store.heldout(count), store.heldout_documents(count)
    sources = tuple(store.sources[number] for number in store.heldout_sources(count)) if store.sources else None
    marks = store.heldout_marks(count)
    if store.pictured:
        if writer is not None:
            raise InputError(f"{checkpoint.name} has another tokenizer than the rows with images of {text}.")
        seen = PictureReader.of(store, checkpoint.folder)(rows, store.heldout_records(count))
        answers = None if marks is None else marks.answers
        return Heldout(rows, store.heldout_bytes(count), documents, answers, sources, seen)
    made = _heldout(rows, store.heldout_bytes(count), documents, marks, sources, apart=store.apart)
    return made if writer is None else retold(made, writer, checkpoint)


def retold(text: Heldout, tokenizer: Any, reader: Checkpoint) -> Heldout:
    """The same text, whose tokens are the `tokenizer`'s, in tokens of another model, which are scored but for those
    that begin a document and those that fill up rows. Its bytes are those of the first, one token a row less.

    Raises:
        InputError: the text is of conversations; and as `Retelling`.
    """
    if text.answers is not None:
        raise InputError(
            f"{reader.name} has another tokenizer than the conversations were laid out for: take plain text, or a "
            "model of the same tokenizer."
        )
    retelling = Retelling(tokenizer, reader.tokenizer, reader.context)
    found = retelling.rows(text.rows)
    shape = len(found), max(len(row.ids) for row in found)
    ids, scored = np.full(shape, retelling.eos_id), np.zeros(shape, np.bool_)
    documents = np.repeat(text.documents[:, -1:], shape[1], axis=1)
    eos = tokenizer.eos_token_id
    for number, row in enumerate(found):
        size = len(row.ids)
        begun = np.append(0, np.flatnonzero(text.rows[number, :-1] == eos) + 1)
        ids[number, :size], scored[number, :size] = row.ids, ~np.isin(row.ids, retelling.framing.documents)
        documents[number, :size] = text.documents[number, begun[row.documents]]
    return Heldout(ids, text.text_bytes, documents, scored, text.sources)


def _heldout(
    rows: NDArray[np.int64],
    text_bytes: int,
    documents: NDArray[np.int64],
    marks: Marks | None,
    sources: tuple[str, ...] | None,
    *,
    apart: bool,
) -> Heldout:
    """Rows of text, or of conversations: those are each alone in a row where training keeps them `apart`."""
    if marks is None:
        return Heldout(rows, text_bytes, documents, None, sources)
    if not apart:
        return Heldout(rows, text_bytes, documents, marks.answers, sources)
    found = alone(rows, marks)
    numbers = np.repeat(np.arange(len(found.ids))[:, None], found.ids.shape[1], axis=1)
    tags = None if sources is None else tuple(sources[row] for row in found.rows)
    return Heldout(found.ids, text_bytes, numbers, found.answers, tags)
