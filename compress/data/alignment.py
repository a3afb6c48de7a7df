"""The text of token rows for a model of another tokenizer: the same documents in its tokens, and which places of both
have read the same characters.

Two places are aligned where the characters before them are the same, whole ones, in the same document: what follows is
the same text for both (Boizard et al., arXiv:2402.12030, align sequences so). Of several places of one model that have
read the same, the last counts: those before it predict what is no text.
"""

import json
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compress.inference.framing import own_framing
from compress.model.spelling import Spelling
from compress.model.tokenizer import tokenizer_spec

Ids = NDArray[np.int64]


class Retold(NamedTuple):
    """A row of S tokens as another tokenizer has its text, in T tokens."""

    ids: Ids
    """[T]"""
    documents: Ids
    """[T] number of each token's document in the row, from 0."""
    pairs: Ids
    """[A, 2] places in the row, and in `ids`, that have read the same characters; in order."""


def document_starts(documents: Ids) -> NDArray[np.bool_]:
    """Where documents begin in a row [T] of their numbers."""
    found: NDArray[np.bool_] = np.diff(documents, prepend=-1) > 0
    return found


class _Document(NamedTuple):
    """A run of tokens of one document in a row."""

    text: str
    ends: Ids
    """How many characters the first 1, 2, ... of the tokens make; -1 within one. Not of EOS."""
    ended: bool
    """Whether EOS follows."""


class Retelling:
    """Rows of one tokenizer to rows of another. Documents begin and end as the other tokenizer's own encoding has it.

    Args:
        tokenizer: of the rows.
        other: of the model that is to read their text.
        limit: tokens of a row that this model reads; what is beyond is left out. None reads all.

    Raises:
        InputError: as `Spelling`, or a tokenizer without EOS or without a fast form.
    """

    def __init__(self, tokenizer: Any, other: Any, limit: int | None = None) -> None:
        from tokenizers import Tokenizer

        self._spelling, self._eos = Spelling(tokenizer), tokenizer_spec(tokenizer).eos_id
        self._other_spelling, spec = Spelling(other), tokenizer_spec(other)
        self.eos_id, self.framing, self._limit = spec.eos_id, own_framing(spec), limit
        # without what frames texts, which may move the offsets off white space
        self._other = Tokenizer.from_str(json.dumps({**json.loads(spec.definition), "post_processor": None}))
        self._other.no_truncation()
        self._other.no_padding()
        self._other.encode_special_tokens = True

    def rows(self, ids: Ids) -> list[Retold]:
        """Each of the rows [N, S] of token ids; the tokenizer's own threads share the work."""
        rows = [self._documents(row) for row in ids]
        texts = [document.text for row in rows for document in row]
        found = iter(self._other.encode_batch(texts, add_special_tokens=False))
        return [self._retold(row, [next(found) for _ in row]) for row in rows]

    def _documents(self, row: Ids) -> list[_Document]:
        parts = np.split(row, np.flatnonzero(row[:-1] == self._eos) + 1)
        return [self._document(part, begins=number > 0) for number, part in enumerate(parts)]

    def _document(self, ids: Ids, *, begins: bool) -> _Document:
        ended = bool(ids[-1] == self._eos)
        return _Document(*self._spelling.read(ids[:-1] if ended else ids, begins=begins), ended)

    def _retold(self, documents: list[_Document], encoded: list[Any]) -> Retold:
        ids: list[int] = []
        sizes: list[int] = []
        read, ours = [], []
        base = 0
        for number, (document, encoding) in enumerate(zip(documents, encoded, strict=True)):
            start = self.framing.documents if number else self.framing.rows
            ids += [*start, *encoding.ids, *([self.eos_id] if document.ended else [])]
            sizes.append(len(ids) - sum(sizes))
            read += [np.full(len(start), base), _marked(self._read(encoding, document.text), base)]
            ours.append(_marked(document.ends, base))
            base += len(document.text) + 1  # what has read EOS is at the start of the next one
            if document.ended:
                read.append(np.array([base]))
                ours.append(np.array([base]))
        numbers = np.repeat(np.arange(len(documents)), sizes)
        pairs = _same(np.concatenate(ours), np.concatenate(read))
        limit = len(ids) if self._limit is None else self._limit
        return Retold(np.array(ids, np.int64)[:limit], numbers[:limit], pairs[pairs[:, 1] < limit])

    def _read(self, encoding: Any, text: str) -> Ids:
        """How many characters of a text the first 1, 2, ... of its tokens make, by their bytes; by the tokenizer's
        offsets, which know no part of a run of bytes, where it rewrites the text (NFC)."""
        for begins in (True, False):
            spelled, ends = self._other_spelling.read(np.array(encoding.ids, np.int64), begins=begins)
            if spelled == text:
                return ends
        return _ends(encoding.offsets, len(text))


def _ends(offsets: list[tuple[int, int]], length: int) -> Ids:
    """How many characters of a text the first 1, 2, ... of its tokens make; -1 where the next one is of the same
    character. What a normalizer takes away belongs to the token before it."""
    starts, ends = np.array(offsets, np.int64).T
    following = np.append(starts[1:], length)
    return np.where(following >= ends, following, -1)


def _marked(ends: Ids, base: int) -> Ids:
    return np.where(ends >= 0, ends + base, -1)


def _same(ours: Ids, theirs: Ids) -> Ids:
    """The last places [A, 2] of each number that both have, but for -1."""
    found = [np.unique(numbers[::-1], return_index=True) for numbers in (ours, theirs)]
    common, *places = np.intersect1d(found[0][0], found[1][0], return_indices=True)
    pairs = [
        len(numbers) - 1 - first[at] for numbers, (_, first), at in zip((ours, theirs), found, places, strict=True)
    ]
    return np.stack(pairs, axis=1)[common >= 0].astype(np.int64)
