"""What the tokens of a BPE or Unigram tokenizer need of one another, and the model that some of them make.

BPE applies the merge of the lowest rank first (Sennrich et al. 2016, arXiv 1508.07909). Within a token that a text ends
up with, no merge ever crosses the token's ends, so it came about as it does alone: from the text's letters, by the
merges that `Bpe.needs` finds. With these, and any others, kept in their order, the text gets the same tokens.
Of a Unigram model (Kudo 2018, arXiv 1804.10959) the likeliest path stays the likeliest where its pieces stay.
"""

import itertools
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from compress.base.errors import InputError
from compress.model.spelling import SPACE

Content = dict[str, Any]


class Pieces(Protocol):
    """The model of a tokenizer's definition."""

    @property
    def ids(self) -> Mapping[str, int]:
        """Its tokens, without those that are only added."""

    def alphabet(self) -> set[int]:
        """What any text can be encoded with."""

    def needs(self, token: int) -> set[int]:
        """A token and those without which no text would be encoded to it."""

    def rebuilt(self, new: Mapping[int, int]) -> Content:
        """The model of the tokens that `new` gives new ids, which are 0, 1, 2, ... in the order of the old ones."""


def pieces_of(model: Content, name: str) -> Pieces:
    """The model of a definition of the tokenizer that is called `name`.

    Raises:
        InputError: it is of a kind that is not trimmed; the message names it.
    """
    kinds: Mapping[str, Callable[[Content], Pieces]] = {"BPE": Bpe, "Unigram": Unigram}
    kind = str(model.get("type"))
    if kind not in kinds:
        raise InputError(
            f"The tokenizer {name} is of the kind {kind}, whose definition cannot be rebuilt for fewer tokens; "
            f"{' and '.join(kinds)} can."
        )
    for field in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(field):
            raise InputError(
                f"The tokenizer {name} is a BPE with {field} = {model[field]!r}, whose merges this tool does not "
                "follow; it cannot be trimmed."
            )
    return kinds[kind](model)


def _alphabet(ids: Mapping[str, int], *, byte_fallback: bool) -> set[int]:
    """The 256 bytes of a tokenizer that spells by them what it has no token for, else each token of one letter."""
    if byte_fallback:
        names = [SPACE, *(f"<0x{byte:02X}>" for byte in range(256))]
        return {ids[name] for name in names if name in ids}
    return {number for text, number in ids.items() if len(text) == 1}


class Bpe:
    """Tokens that merges make."""

    def __init__(self, model: Content) -> None:
        self._model = model
        self.ids: dict[str, int] = model["vocab"]
        self._texts = {number: text for text, number in self.ids.items()}
        merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
        self._ranks: dict[tuple[str, ...], int] = {}
        for rank, pair in enumerate(merges):
            self._ranks.setdefault(pair, rank)
        self._merges = merges

    def alphabet(self) -> set[int]:
        unknown = self._model.get("unk_token")
        found = _alphabet(self.ids, byte_fallback=bool(self._model.get("byte_fallback")))
        return found | ({self.ids[unknown]} if unknown in self.ids else set())

    def needs(self, token: int) -> set[int]:
        text = self._texts.get(token)
        if text is None:
            return {token}
        symbols, made = list(text), set(text)
        while len(symbols) > 1:
            pairs = list(itertools.pairwise(symbols))
            at = min(range(len(pairs)), key=lambda place: self._ranks.get(pairs[place], math.inf))
            if pairs[at] not in self._ranks:
                return {token}  # no merges make it: texts get it whole (ignore_merges, added tokens) or never
            symbols[at : at + 2] = ["".join(pairs[at])]
            made.add(symbols[at])
        return {token, *(self.ids[symbol] for symbol in made if symbol in self.ids)}

    def rebuilt(self, new: Mapping[int, int]) -> Content:
        vocab = {text: new[old] for text, old in sorted(self.ids.items(), key=lambda item: item[1]) if old in new}
        kept = [list(pair) for pair in self._merges if vocab.keys() >= {*pair, "".join(pair)}]
        return {**self._model, "vocab": vocab, "merges": kept}


class Unigram:
    """Tokens with log-probabilities."""

    def __init__(self, model: Content) -> None:
        self._model = model
        self.ids: dict[str, int] = {text: number for number, (text, _) in enumerate(model["vocab"])}

    def alphabet(self) -> set[int]:
        vocab, unknown = self._model["vocab"], self._model.get("unk_id")
        # What an unknown letter costs is reckoned from the least likely token.
        least = min(range(len(vocab)), key=lambda number: vocab[number][1])
        found = _alphabet(self.ids, byte_fallback=bool(self._model.get("byte_fallback")))
        return {*found, least, *([] if unknown is None else [unknown])}

    def needs(self, token: int) -> set[int]:
        return {token}

    def rebuilt(self, new: Mapping[int, int]) -> Content:
        vocab = [entry for number, entry in enumerate(self._model["vocab"]) if number in new]
        unknown = self._model.get("unk_id")
        return {**self._model, "vocab": vocab, "unk_id": None if unknown is None else new[unknown]}


def closed(pieces: Pieces, tokens: Collection[int]) -> set[int]:
    """Tokens with all that they need."""
    return {needed for token in tokens for needed in pieces.needs(token)}
