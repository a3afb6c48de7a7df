"""Which documents are held out: those with the smallest seeded hashes, found in one pass.

The pool keeps the documents with the smallest hashes seen so far, as few as hold the tokens wanted. A document that
a smaller one pushes out goes to training at that moment. The largest hash in a full pool only ever falls, so a copy
of a held-out document would itself have been in the pool: no text is ever on both sides. The choice is uniform over
all documents read, needs no knowledge of how many there will be, and wastes none.
"""

import base64
import dataclasses
from bisect import insort
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.data.store.encode import Encoder, Ids


@dataclasses.dataclass
class _Document:
    text: str
    ids: Ids
    copies: int = 1


class HeldOutPool:
    """The held-out documents so far, with at least `wanted_tokens` tokens once `full`."""

    def __init__(self, wanted_tokens: int, seed: int) -> None:
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
        return sum(document.copies - 1 for document in self._documents.values())

    def offer(self, text: str, ids: Ids) -> list[Ids]:
        """Take in a document with ids [n] and return those that are training documents now, in order."""
        if not self._wanted:
            return [ids]
        key = blake2b(text.encode(), digest_size=16, key=self._seed).digest()
        if key in self._documents:
            self._documents[key].copies += 1
            return []
        if self.full and key > self._keys[-1]:
            return [ids]
        self._add(key, _Document(text, ids))
        released = []
        while self.tokens - len(self._documents[self._keys[-1]].ids) >= self._wanted:
            document = self._documents.pop(self._keys.pop())
            self.tokens -= len(document.ids)
            released.extend([document.ids] * document.copies)
        return released

    def rows(self, encoder: Encoder, seq_len: int) -> tuple[Ids, list[int]]:
        """The held-out rows [wanted / seq_len, seq_len], and for each the bytes of text of its tokens 1..seq_len-1.

        Documents follow each other in the order of their hashes, EOS after each, the last one cut.
        """
        encoded = [encoder.with_bytes(self._documents[key].text) for key in self._keys]
        ids = _cut([ids for ids, _ in encoded], self._wanted)
        sizes = _cut([sizes for _, sizes in encoded], self._wanted).reshape(-1, seq_len)
        return ids.reshape(-1, seq_len), sizes[:, 1:].sum(axis=1).tolist()

    def state(self) -> list[Any]:
        """The pool as JSON data."""
        return [[base64.b64encode(k).decode(), d.text, d.copies] for k, d in sorted(self._documents.items())]

    def restore(self, state: Iterable[Any], encoder: Encoder) -> None:
        """Fill an empty pool from `state()`."""
        for key, text, copies in state:
            self._add(base64.b64decode(key), _Document(text, encoder([text])[0], copies))

    def _add(self, key: bytes, document: _Document) -> None:
        self._documents[key] = document
        insort(self._keys, key)
        self.tokens += len(document.ids)


def _cut(parts: list[NDArray[Any]], length: int) -> NDArray[Any]:
    return np.concatenate([*parts, np.zeros(0, dtype=np.uint32)])[:length]
