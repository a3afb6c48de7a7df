"""Which documents are held out: those with the smallest seeded hashes, found in one pass.

The pool keeps the documents with the smallest hashes seen so far, as few as hold the tokens wanted. A document that
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

import numpy as np
from numpy.typing import NDArray

from compress.data.store.encode import Encoder, Ids

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
    ids: Ids
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

    def add(self, text: str, ids: Ids, count: int = 1) -> None:
        self.variants.setdefault(text, _Variant(text, ids, 0)).count += count


class HeldOutPool:
    """The held-out documents so far, with at least `wanted_tokens` tokens once `full`."""

    def __init__(self, wanted_tokens: int, seed: int, alike: Alike = "normalised") -> None:
        self.alike = alike
        self._wanted = wanted_tokens
        self._seed = (seed % 2**64).to_bytes(8, "little")
        self._documents: dict[bytes, _Document] = {}
        self._keys: list[bytes] = []
        self.tokens = 0
        """Tokens in the pool, EOS included."""

    @property
    def full(self) -> bool:
        """Whether the pool has all the tokens wanted."""
        return self.tokens >= self._wanted

    @property
    def documents(self) -> int:
        """Distinct documents in the pool."""
        return len(self._keys)

    @property
    def copies(self) -> int:
        """Further copies of held-out documents, which are in neither part."""
        return sum(document.count - 1 for document in self._documents.values())

    @property
    def near_copies(self) -> int:
        """Those of the copies that are written otherwise."""
        return sum(document.count - document.first.count for document in self._documents.values())

    def offer(self, text: str, ids: Ids) -> list[Ids]:
        """Take in a document with ids [n] and return those that are training documents now, in order."""
        if not self._wanted:
            return [ids]
        content = text.encode() if self.alike == "exact" else normal_form(text)
        key = blake2b(content, digest_size=16, key=self._seed).digest()
        if key in self._documents:
            self._add(key, text, ids)
            return []
        if self.full and key > self._keys[-1]:
            return [ids]
        self._add(key, text, ids)
        released = []
        while self.tokens - len(self._documents[self._keys[-1]].first.ids) >= self._wanted:
            document = self._documents.pop(self._keys.pop())
            self.tokens -= len(document.first.ids)
            for variant in document.variants.values():
                released.extend([variant.ids] * variant.count)
        return released

    def rows(self, encoder: Encoder, seq_len: int) -> tuple[Ids, list[int]]:
        """The held-out rows [wanted / seq_len, seq_len], and for each the bytes of text of its tokens 1..seq_len-1.

        Documents follow each other in the order of their hashes, EOS after each, the last one cut.
        """
        encoded = [encoder.with_bytes(self._documents[key].first.text) for key in self._keys]
        ids = _cut([ids for ids, _ in encoded], self._wanted)
        sizes = _cut([sizes for _, sizes in encoded], self._wanted).reshape(-1, seq_len)
        return ids.reshape(-1, seq_len), sizes[:, 1:].sum(axis=1).tolist()

    def state(self) -> list[Any]:
        """The pool as JSON data."""
        return [
            [base64.b64encode(key).decode(), variant.text, variant.count]
            for key, document in sorted(self._documents.items())
            for variant in document.variants.values()
        ]

    def restore(self, state: Iterable[Any], encoder: Encoder) -> None:
        """Fill an empty pool from `state()`."""
        for name, text, count in state:
            self._add(base64.b64decode(name), text, encoder([text])[0], count)

    def _add(self, key: bytes, text: str, ids: Ids, count: int = 1) -> None:
        if key not in self._documents:
            self._documents[key] = _Document()
            insort(self._keys, key)
            self.tokens += len(ids)
        self._documents[key].add(text, ids, count)


def _cut(parts: list[NDArray[Any]], length: int) -> NDArray[Any]:
    return np.concatenate([*parts, np.zeros(0, dtype=np.uint32)])[:length]
