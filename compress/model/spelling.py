"""What text token ids stand for, from the ids alone: the bytes of each token, and where they complete a character."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.base.errors import InputError

SPACE = "\u2581"
"""What sentencepiece writes for a space: ▁."""
_CONTINUES = 0x80
"""The two highest bits of a byte that begins no character."""


class Spelling:
    """The UTF-8 bytes that each id of a tokenizer stands for: none for special tokens.

    Raises:
        InputError: its tokens are neither of bytes (GPT-2's alphabet) nor of text with ▁ for spaces (sentencepiece).
    """

    def __init__(self, tokenizer: Any) -> None:
        definition = json.loads(tokenizer.backend_tokenizer.to_str())
        kinds, texts = set(_kinds(definition["decoder"])), tokenizer.get_vocab()
        if not kinds & {"ByteLevel", "Metaspace", "ByteFallback", "Replace"}:
            raise InputError(
                f"The tokenizer {tokenizer.name_or_path} spells its tokens in a way that is not known here (neither "
                "bytes nor sentencepiece), so its text cannot be given to another one. Take models with the same "
                "tokenizer."
            )
        spell = _of_bytes if "ByteLevel" in kinds else _of_pieces
        added = {token["id"]: "" if token["special"] else token["content"] for token in definition["added_tokens"]}
        self._bytes = [b""] * (max(texts.values()) + 1)
        for text, number in texts.items():
            self._bytes[number] = added[number].encode() if number in added else spell(text)
        alone = tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).ids
        self._adds_space = b"".join(self._bytes[number] for number in alone) == b" a"

    def read(self, ids: NDArray[Any], *, begins: bool) -> tuple[str, NDArray[np.int64]]:
        """The text of ids [n], and how many characters of it the first 1, 2, ... n of them make; -1 where they end
        within a character. `begins`: whether a document does, before which some tokenizers put a space.

        Bytes at either end that are part of a character cut in two are no text.
        """
        pieces = [self._bytes[number] for number in ids.tolist()]
        whole, ends = b"".join(pieces), np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        spaced = int(begins and self._adds_space and whole.startswith(b" "))
        first = spaced
        while first < len(whole) and whole[first] & 0xC0 == _CONTINUES:
            first += 1
        text = _valid(whole[first:])
        starts = np.frombuffer(text.encode(), np.uint8) & 0xC0 != _CONTINUES
        before = np.full(len(whole) + 1, -1, dtype=np.int64)
        last = first + len(starts)
        before[:spaced] = 0
        before[first:last][starts] = np.arange(len(text))
        before[last] = len(text)
        return text, before[ends]


def _valid(text: bytes) -> str:
    """What of it is UTF-8, up to the first byte that is not."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        return text[: error.start].decode()


def _kinds(decoder: dict[str, Any] | None) -> Iterator[str]:
    """The kinds of a decoder's parts; of a Replace, those of ▁."""
    for part in (decoder or {}).get("decoders", [decoder] if decoder else []):
        if part["type"] != "Replace" or part["pattern"].get("String") == SPACE:
            yield part["type"]


def _alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones for themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTES = _alphabet()


def _of_bytes(token: str) -> bytes:
    return bytes(_BYTES[letter] for letter in token) if all(letter in _BYTES for letter in token) else token.encode()


def _of_pieces(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace(SPACE, " ").encode()
