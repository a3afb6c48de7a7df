"""Which tokens of held-out text are alike: by place in the row, by what they are, by how often they occur.

A mean over all tokens hides where a student differs from its teacher: spaces and the insides of words are easy, and
there are many of them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

KINDS = ("word_start", "word_inside", "digit", "punctuation", "space", "special")
FREQUENCIES = ("frequent", "medium", "rare")
_FREQUENT, _RARE = 0.5, 0.9
_UNDECODABLE = "\N{REPLACEMENT CHARACTER}"

Codes = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Grouping:
    """`codes` [n, S - 1]: the class, as an index into `labels`, of each predicted token; -1 where it is not scored."""

    labels: tuple[str, ...]
    codes: Codes

    @property
    def counts(self) -> Codes:
        """Scored tokens of each class."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.labels))

    def only(self, scored: NDArray[np.bool_]) -> "Grouping":
        """The same of those tokens [n, S - 1]."""
        return dataclasses.replace(self, codes=np.where(scored, self.codes, -1))


def group_tokens(rows: NDArray[np.int64], tokenizer: Any) -> dict[str, Grouping]:
    """The three groupings of tokens 1..S-1 of `rows` [n, S]; a token counts where it is predicted.

    - position: place in the row from 1, in spans that double: 1, 2-3, 4-7, ...
    - token: `word_start` (letters that begin a word: after a space of their own or after no letter or digit),
      `word_inside`, `digit` (digits alone), `punctuation` (no letter, digit or space), `space`, `special` (EOS)
    - frequency: ids by their count in `rows`; `frequent` ones make up the first half of the tokens, `rare` ones the
      last tenth
    """
    return {
        "position": _positions(rows.shape),
        "token": Grouping(KINDS, _kinds(rows, tokenizer)),
        "frequency": Grouping(FREQUENCIES, _frequencies(rows[:, 1:])),
    }


def _positions(shape: Sequence[int]) -> Grouping:
    place = np.arange(1, shape[1])
    spans = np.array([int(p).bit_length() - 1 for p in place])
    firsts = [1 << span for span in range(int(spans[-1]) + 1)]
    lasts = [min(2 * first - 1, shape[1] - 1) for first in firsts]
    labels = tuple(str(a) if a == b else f"{a}-{b}" for a, b in zip(firsts, lasts, strict=True))
    return Grouping(labels, np.broadcast_to(spans, (shape[0], len(spans))))


def _kinds(rows: NDArray[np.int64], tokenizer: Any) -> Codes:
    ids, inverse = np.unique(rows, return_inverse=True)
    known = [_kind(int(token), tokenizer) for token in ids]
    kind = np.array([KINDS.index(name) for name, _ in known])[inverse.reshape(rows.shape)]
    spaced = np.array([leads for _, leads in known])[inverse.reshape(rows.shape)]
    word = np.isin(kind, [KINDS.index("word_start"), KINDS.index("word_inside")])
    joined = word | (kind == KINDS.index("digit"))
    begins = spaced[:, 1:] | ~joined[:, :-1]
    inside = word[:, 1:] & ~begins
    return np.where(inside, KINDS.index("word_inside"), kind[:, 1:])


def _kind(token: int, tokenizer: Any) -> tuple[str, bool]:
    """The class of an id but for its place in a word, and whether it brings a space of its own."""
    if token in tokenizer.all_special_ids:
        return "special", False
    piece = str(tokenizer.convert_ids_to_tokens(token))
    text = tokenizer.decode([token])
    leads = piece.startswith(("Ġ", "▁")) or text[:1].isspace()
    bare = text.strip()
    if not bare:
        return "space", False
    if bare.isdigit():
        return "digit", leads
    if _UNDECODABLE in bare or any(c.isalnum() for c in bare):
        return "word_start", leads
    return "punctuation", leads


def _frequencies(predicted: NDArray[np.int64]) -> Codes:
    ids, inverse, counts = np.unique(predicted, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    before = np.zeros(len(ids))
    before[order] = (np.cumsum(counts[order]) - counts[order]) / predicted.size
    codes = np.where(before < _FREQUENT, 0, np.where(before < _RARE, 1, 2))
    return np.asarray(codes[inverse.reshape(predicted.shape)])
