"""Which documents are held out: those with the smallest seeded hashes, found in one pass.

The pool keeps the documents with the smallest hashes seen so far, as few as give the rows wanted. A document that
a smaller one pushes out goes to training at that moment. The largest hash in a full pool only ever falls, so a copy
of a held-out document would itself have been in the pool: no text is ever on both sides. The choice is uniform over
all documents read, needs no knowledge of how many there will be, and wastes none.

The hash is of the text's normal form: case folded, NFC, one space for any white space. So copies that differ in line
ends, indentation, capitals or how accents are put together count as one text. Copies that differ in a word, in
punctuation or in what surrounds them are not looked for.
"""

import base64
import dataclasses
import unicodedata
from bisect import insort
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, Literal

from compress.data.store.encode import Document, DocumentEncoder
from compress.data.store.layout import RowLayout, TextRows

Alike = Literal["exact", "normalised"]
"""What makes two documents one text; preparations that an earlier version began compare exact texts to their end."""


def normal_form(text: str) -> bytes:
    """What copies of a text have in common, as UTF-8."""
    folded = text.lower() if text.isascii() else unicodedata.normalize("NFC", text.casefold())
    return " ".join(folded.split()).encode()


@dataclasses.dataclass
class _Variant:
    """One text, as it was written."""

    text: str
    ids: Document
    count: int


@dataclasses.dataclass
class _Document:
    """Texts that are alike; the first stands for all where they are held out."""

    variants: dict[str, _Variant] = dataclasses.field(default_factory=dict)

    @property
    def first(self) -> _Variant:
        return next(iter(self.variants.values()))

    @property
    def count(self) -> int:
        return sum(variant.count for variant in self.variants.values())

    def add(self, text: str, ids: Document, count: int = 1) -> None:
        self.variants.setdefault(text, _Variant(text, ids, 0)).count += count


class HeldOutPool:
    """The held-out documents so far, which give at least `num_rows` rows of the layout once `full`."""

    def __init__(self, num_rows: int, layout: RowLayout, seed: int, alike: Alike = "normalised") -> None:
        self.alike, self.layout = alike, layout
        self._num_rows = num_rows
        self._seed = (seed % 2**64).to_bytes(8, "little")
        self._documents: dict[bytes, _Document] = {}
        self._keys: list[bytes] = []
        self.tokens = 0
        """Tokens of the rows that the pool gives, those of a row that is not full included."""

    @property
    def full(self) -> bool:
        """Whether the pool gives all the rows wanted."""
        return self.tokens >= self._num_rows * self.layout.seq_len

    @property
    def documents(self) -> int:
        """Distinct documents in the pool."""
        return len(self._keys)

    @property
    def whole_tokens(self) -> int:
        """Tokens of the documents in the pool, whatever of them is in its rows: training does without all of them."""
        return sum(len(document.first.ids) for document in self._documents.values())

    @property
    def copies(self) -> int:
        """Further copies of held-out documents, which are in neither part."""
        return sum(document.count - 1 for document in self._documents.values())

    @property
    def near_copies(self) -> int:
        """Those of the copies that are written otherwise."""
        return sum(document.count - document.first.count for document in self._documents.values())

    def offer(self, text: str, ids: Document) -> list[Document]:
        """Take in a document with ids [n] and return those that are training documents now, in order."""
        if not self._num_rows:
            return [ids]
        content = text.encode() if self.alike == "exact" else normal_form(text)
        key = blake2b(content, digest_size=16, key=self._seed).digest()
        if key in self._documents:
            self._add(key, text, ids)
            return []
        if self.full and key > self._keys[-1]:
            return [ids]
        self._add(key, text, ids)
        return self._release()

    @property
    def can_widen(self) -> bool:
        """Whether a document has more rows than it gives."""
        return any(not self.layout.is_whole(len(document.first.ids)) for document in self._documents.values())

    def widen(self) -> list[Document]:
        """Let each document give twice the rows, and return those that are training documents then, in order."""
        self.layout = self.layout.wider()
        self.tokens = sum(map(self._gives, self._documents.values()))
        return self._release()

    def rows(self, encoder: DocumentEncoder) -> TextRows:
        """The held-out rows, in the order of their documents' hashes."""
        texts = (self._documents[key].first.text for key in self._keys)
        return self.layout.rows(texts, encoder, self._num_rows)

    def state(self) -> list[Any]:
        """The pool as JSON data."""
        return [
            [base64.b64encode(key).decode(), variant.text, variant.count]
            for key, document in sorted(self._documents.items())
            for variant in document.variants.values()
        ]

    def restore(self, state: Iterable[Any], encoder: DocumentEncoder) -> None:
        """Fill an empty pool from `state()`."""
        for name, text, count in state:
            ids = encoder([text])[0]
            assert not isinstance(ids, str), "what is in a pool was encoded before"
            self._add(base64.b64decode(name), text, ids, count)

    def _add(self, key: bytes, text: str, ids: Document, count: int = 1) -> None:
        known = key in self._documents
        if not known:
            self._documents[key] = _Document()
            insort(self._keys, key)
        self._documents[key].add(text, ids, count)
        if not known:
            self.tokens += self._gives(self._documents[key])

    def _release(self) -> list[Document]:
        """Take out the documents of the largest hashes that the rows do without."""
        released = []
        wanted = self._num_rows * self.layout.seq_len
        while self._keys and self.tokens - self._gives(self._documents[self._keys[-1]]) >= wanted:
            document = self._documents.pop(self._keys.pop())
            self.tokens -= self._gives(document)
            for variant in document.variants.values():
                released.extend([variant.ids] * variant.count)
        return released

    def _gives(self, document: _Document) -> int:
        return self.layout.gives(len(document.first.ids))
