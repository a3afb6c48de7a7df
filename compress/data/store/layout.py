"""Rows out of whole documents, as many documents as there can be: how held-out rows and samples of a text are laid out.

Rows of one document are alike, and a number from four books says little of the fifth. So a document gives one row, from
a place in it that its hash draws; shorter ones share rows. Where there are too few documents, or they would take what
training needs, each gives two rows, or four, and so on.
"""

import dataclasses
from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compress.data.store.encode import DocumentEncoder, Ids
from compress.model.framing import row_starts, with_starts


class TextRows(NamedTuple):
    """N rows of S tokens, what text they stand for, and where it comes from."""

    ids: Ids
    """[N, S]"""
    text_bytes: list[int]
    """[N] UTF-8 bytes of text of each row's tokens 1..S-1."""
    documents: NDArray[np.int64]
    """[N, S] number of each token's document."""
    marks: NDArray[np.uint8] | None = None
    """[N, S] marks of conversations' tokens (see `compress.data.store.marks`)."""
    records: list[bytes] | None = None
    """[N] what the pixels of each row are made of; None where rows have no images."""


@dataclasses.dataclass(frozen=True)
class RowLayout:
    """How documents become rows of `seq_len` tokens, each beginning with `row_start`."""

    seq_len: int
    row_start: tuple[int, ...] = ()
    share: int | None = 1
    """Rows that a document gives at most; None for all that it has."""

    @property
    def _part(self) -> int:
        """Tokens of a document in a row of its own."""
        return self.seq_len - len(self.row_start)

    def is_whole(self, length: int) -> bool:
        """Whether all of a document of that many tokens is in the rows, which it then shares with others."""
        return self.share is None or length <= self.share * self._part

    def gives(self, length: int) -> int:
        """Tokens of rows that a document of that many tokens gives."""
        return length if self.share is None or self.is_whole(length) else self.share * self.seq_len

    def wider(self) -> "RowLayout":
        """The same with twice the rows a document."""
        assert self.share is not None
        return dataclasses.replace(self, share=2 * self.share)

    def rows(self, texts: Iterable[str], encoder: DocumentEncoder, num_rows: int) -> TextRows:
        """At most `num_rows` rows of the documents, in their order; a row that several share stands where it is full.

        Documents that share rows follow each other, EOS after each, the last one cut. Where all of them give less than
        a row, there is one of fewer tokens.
        """
        rows: list[NDArray[np.int64]] = []
        shared = np.zeros((0, 3), np.int64)
        for number, text in enumerate(texts):
            ids, sizes = encoder.with_bytes(text)
            tokens = np.stack([ids.astype(np.int64), sizes, np.full(len(ids), number)], axis=1)
            if not self.is_whole(len(ids)):
                rows += [self._started(tokens[at : at + self.seq_len]) for at in self._places(text, len(ids))]
                continue
            shared = np.concatenate([shared, self._started(tokens, len(shared))])
            while len(shared) >= self.seq_len:
                rows.append(shared[: self.seq_len])
                shared = shared[self.seq_len :]
        found = np.stack([row[: self.seq_len] for row in (rows or [shared])[: max(num_rows, 1)]])[:num_rows]
        return TextRows(found[..., 0].astype(np.uint32), found[:, 1:, 1].sum(axis=1).tolist(), found[..., 2])

    def _places(self, text: str, length: int) -> list[int]:
        """Where the rows of a document of that many tokens begin: places that its hash draws, in order."""
        count = self.share or 0
        content = text.encode()
        draws = [
            int.from_bytes(blake2b(content, digest_size=8, salt=draw.to_bytes(16)).digest()) for draw in range(count)
        ]
        gaps = sorted(draw % (length - count * self._part + 1) for draw in draws)
        return [gap + number * self._part for number, gap in enumerate(gaps)]

    def _started(self, tokens: NDArray[np.int64], filled: int = 0) -> NDArray[np.int64]:
        """Columns (id, bytes, document) [n, 3] of a document after `filled` tokens of a row, each row begun as it is
        to begin."""
        places = row_starts(tokens[:, 0], filled % self.seq_len, self.seq_len, self.row_start)
        size = len(self.row_start)
        starts = (self.row_start, (0,) * size, (int(tokens[0, 2]),) * size)
        return np.stack([with_starts(*each) for each in zip(tokens.T, [places] * 3, starts, strict=True)], axis=1)
