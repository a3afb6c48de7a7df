"""Documents to token ids: in batches, on all cores, the same ids whatever the batching.

The tokenizer's own threads do the work, driven from one thread of ours, so that reading goes on meanwhile. Of two
cores they make more than two processes do, to which text and ids must be sent; what one thread must do alone (ids into
an array) is a fiftieth of the work.
"""

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from compress.model.tokenizer import TokenizerSpec

B = TypeVar("B")
Ids = NDArray[np.uint32]


@dataclasses.dataclass(frozen=True)
class Pictured:
    """The ids of a conversation about images, with their marks, and what pixels are made of."""

    ids: Ids
    record: bytes

    def __len__(self) -> int:
        return len(self.ids)


Document = Ids | Pictured
Encoded = Document | str
"""What becomes of a document, or what is wrong with it."""

PIECE_CHARS = 2**16
_CHARS_AT_ONCE = 2**20


class DocumentEncoder(Protocol):
    """Documents to token ids, which may carry marks (see `compress.data.store.marks`)."""

    def __call__(self, documents: Sequence[str]) -> Sequence[Encoded]:
        """For each document its ids, or what is wrong with it."""

    def bare(self, document: str) -> Ids:
        """The ids of a document alone, without marks and without what frames it."""

    def with_bytes(self, document: str) -> tuple[Any, NDArray[np.int64]]:
        """The document as `__call__` gives it, and for each token the UTF-8 bytes of text it stands for."""


class Encoder:
    """Token ids of documents. Text is only text: a document that spells out a special token gets no such token."""

    def __init__(self, spec: TokenizerSpec, start: tuple[int, ...] = ()) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(spec.definition)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self._start = np.array(start, dtype=np.uint32)
        self._end = np.array([spec.eos_id], dtype=np.uint32)

    def __call__(self, documents: Sequence[str]) -> list[Ids]:
        """For each document its ids, `start` before and EOS after; memory is bounded however long a document is."""
        split = [split_pieces(document) for document in documents]
        encoded = self._encode_pieces([piece for pieces in split for piece in pieces])
        return [np.concatenate([self._start, *itertools.islice(encoded, len(pieces)), self._end]) for pieces in split]

    def bare(self, document: str) -> Ids:
        """The ids of a document's text alone."""
        return np.concatenate(list(self._encode_pieces(split_pieces(document))))

    def _encode_pieces(self, pieces: Sequence[str]) -> Iterator[Ids]:
        """Ids of each piece; the tokenizer's own bulky objects exist for `_CHARS_AT_ONCE` characters at a time."""
        start = 0
        while start < len(pieces):
            stop, chars = start, 0
            while stop < len(pieces) and chars < _CHARS_AT_ONCE:
                chars += len(pieces[stop])
                stop += 1
            for found in self._tokenizer.encode_batch_fast(pieces[start:stop], add_special_tokens=False):
                yield np.array(found.ids, dtype=np.uint32)
            start = stop

    def with_bytes(self, document: str) -> tuple[Ids, NDArray[np.int64]]:
        """Ids as `__call__` gives them, and for each the UTF-8 bytes of text it stands for.

        The bytes sum to those of the document. A character that is split over tokens counts with the first of them;
        what a normalizer drops at the end counts with the last; what frames the document has none.
        """
        ids: list[Ids] = []
        sizes: list[NDArray[np.int64]] = []
        for piece in split_pieces(document):
            encoding = self._tokenizer.encode(piece, add_special_tokens=False)
            if not encoding.ids:
                continue
            bytes_before = np.cumsum([0, *(len(character.encode()) for character in piece)])
            ends = np.maximum.accumulate([end for _, end in encoding.offsets])
            ends[-1] = len(piece)
            ids.append(np.array(encoding.ids, dtype=np.uint32))
            sizes.append(np.diff(bytes_before[ends], prepend=0))
        frame = [np.zeros(len(ends), dtype=np.int64) for ends in (self._start, self._end)]
        return np.concatenate([self._start, *ids, self._end]), np.concatenate([frame[0], *sizes, frame[1]])


def split_pieces(text: str) -> list[str]:
    """Cut a very long document into pieces of at most `PIECE_CHARS` characters, before a single space if possible.

    Byte-level BPE joins a space to the word after it, so such a cut is one that its pre-tokenizer makes anyway.
    """
    pieces = []
    start = 0
    while len(text) - start > PIECE_CHARS:
        cut = start + PIECE_CHARS
        space = text.rfind(" ", start + PIECE_CHARS // 2, cut)
        while space > 0 and (text[space - 1].isspace() or text[space + 1].isspace()):
            space = text.rfind(" ", start + PIECE_CHARS // 2, space)
        if space > 0:
            cut = space
        pieces.append(text[start:cut])
        start = cut
    pieces.append(text[start:])
    return pieces


@contextmanager
def encoding(encoder: DocumentEncoder) -> Iterator[Callable[[Sequence[str]], Future[Sequence[Encoded]]]]:
    """Yield a function that encodes a batch of documents in the background; results are futures."""
    with ThreadPoolExecutor(1, "encode") as background:
        try:
            yield lambda documents: background.submit(encoder, documents)
        finally:
            background.shutdown(wait=True, cancel_futures=True)


def in_order(
    batches: Iterable[B],
    texts: Callable[[B], Sequence[str]],
    submit: Callable[[Sequence[str]], Future[Sequence[Encoded]]],
    *,
    window: int,
) -> Iterator[tuple[B, Sequence[Encoded]]]:
    """Encode batches with up to `window` of them on the way, and yield them in order."""
    pending: deque[tuple[B, Future[Sequence[Encoded]]]] = deque()
    for batch in batches:
        pending.append((batch, submit(texts(batch))))
        if len(pending) > window:
            done, future = pending.popleft()
            yield done, future.result()
    while pending:
        done, future = pending.popleft()
        yield done, future.result()
