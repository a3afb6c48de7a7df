"""Which places of two tokenizers' rows have read the same: against the tokenizers' own decoding, by brute force."""

import functools
import itertools
import re
import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from two_tokenizers import KINDS, TEXTS

from compress.data.alignment import Retelling

PARTS = st.sampled_from([text[i:j] for text in TEXTS for i in range(0, len(text), 5) for j in (i + 3, i + 11)])
DOCUMENTS = st.lists(st.lists(PARTS, min_size=1, max_size=4).map("".join), min_size=1, max_size=3)
SPACED = ("unigram", "llama")
"""Kinds that put a space before a text; unigram only where it has none."""
PAIRS = list(itertools.permutations(KINDS, 2))


@functools.cache
def tokenizer(kind: str) -> Any:
    found = KINDS[kind]()
    return found if found is not None else pytest.skip("needs ../shared/data/tokenizers")


@functools.cache
def retelling(kind: str, other: str) -> Retelling:
    return Retelling(tokenizer(kind), tokenizer(other))


def encoded(kind: str, text: str) -> list[int]:
    ids: list[int] = tokenizer(kind).backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def decoded(kind: str, ids: list[int]) -> str:
    """What ids stand for; U+FFFD in the end where they end within a character. The tokenizer itself decodes bytes; of
    sentencepiece's single bytes it replaces whole runs that are not whole."""
    backend = tokenizer(kind).backend_tokenizer
    if kind not in SPACED:
        found: str = backend.decode(ids, skip_special_tokens=True)
        return found
    pieces = "".join(map(backend.id_to_token, ids)).replace("▁", " ").encode()
    return re.sub(rb"<0x(..)>", lambda byte: bytes.fromhex(byte[1].decode()), pieces).decode("utf-8", "replace")


def read_by(kind: str, ids: list[int], before: list[int], *, spaced: bool) -> list[str | None]:
    """What each place of a run of ids has read of a document, of which a row has left out the ids `before`, and of a
    character that is cut in two nothing; `spaced`: the tokenizer put a space before the document."""
    whole = [decoded(kind, [*before, *ids[:n]]).removeprefix(" " if spaced else "") for n in range(len(ids) + 1)]
    within = [found.endswith("\ufffd") for found in whole]
    left_out = len(whole[0].rstrip("\ufffd")) + within[0]
    return [
        None if cut or len(found) < left_out else found[left_out:]
        for found, cut in zip(whole[1:], within[1:], strict=True)
    ]


Read = list[tuple[int, str] | None]
"""For each place the number of the document and what has been read of it; None within a character."""


def last_places(read: Read) -> dict[tuple[int, str], int]:
    return {prefix: place for place, prefix in enumerate(read) if prefix is not None}


def row_of(kind: str, documents: list[str], start: int, stop: int) -> tuple[list[int], Read, dict[int, str]]:
    """A row cut out of the documents' tokens, each with EOS, what its places have read, and by document the text in it:
    its whole characters."""
    stream: list[int] = []
    read: Read = []
    texts = {}
    for number, text in enumerate(documents):
        ids = encoded(kind, text)
        first, last = (max(0, min(len(ids), end - len(stream))) for end in (start, stop))
        spaced = kind in SPACED
        prefixes = read_by(kind, ids[first:], ids[:first], spaced=spaced)
        left_out, within = (decoded(kind, ids[:n]).removeprefix(" " if spaced else "") for n in (first, last))
        texts[number] = within.rstrip("\ufffd")[len(left_out.rstrip("\ufffd")) + left_out.endswith("\ufffd") :]
        stream += [*ids, tokenizer(kind).eos_token_id]
        read += [None] * first + [None if p is None else (number, p) for p in prefixes] + [(number + 1, "")]
    return stream[start:stop], read[start:stop], texts


def told(kind: str, found: Any, texts: dict[int, str]) -> Read:
    """What the places of a retold row have read, whose documents are these texts."""
    read: Read = []
    for number in range(found.documents.max(initial=-1) + 1):
        ids = found.ids[found.documents == number].tolist()
        ended = ids[-1:] == [tokenizer(kind).eos_token_id]
        spaced = kind == "llama" or (kind == "unigram" and not texts.get(number, "").startswith(" "))
        prefixes = read_by(kind, ids[: len(ids) - ended], [], spaced=spaced)
        read += [None if prefix is None else (number, prefix) for prefix in prefixes] + [(number + 1, "")] * ended
    return read


@pytest.mark.parametrize(("kind", "other"), PAIRS)
@settings(deadline=None, max_examples=40, derandomize=True)
@given(documents=DOCUMENTS, cut=st.integers(1, 12), tail=st.integers(0, 6))
@example(documents=["The", " 👩\u200d"], cut=1, tail=4)
def test_the_pairs_are_all_that_have_read_the_same(
    kind: str, other: str, documents: list[str], cut: int, tail: int
) -> None:
    size = len(encoded(kind, documents[0]))
    total = sum(len(encoded(kind, text)) + 1 for text in documents)
    start = min(cut, size)
    row, ours, texts = row_of(kind, documents, start, max(start + 1, total - tail))
    (found,) = retelling(kind, other).rows(np.array([row]))
    if "NFC" in other or other == "gpt-neox":
        ours = [p and (p[0], unicodedata.normalize("NFC", p[1])) for p in ours]
    mine, theirs = last_places(ours), last_places(told(other, found, texts))
    assert {tuple(pair) for pair in found.pairs.tolist()} == {(mine[p], theirs[p]) for p in mine.keys() & theirs.keys()}


@pytest.mark.parametrize(("kind", "other"), PAIRS)
def test_much_of_every_script_is_aligned(kind: str, other: str) -> None:
    for text in TEXTS:
        row = encoded(kind, text)
        (found,) = retelling(kind, other).rows(np.array([row]))
        assert 1 <= len(found.pairs) <= min(len(row), len(found.ids))
        assert (np.diff(found.pairs, axis=0) > 0).all()
