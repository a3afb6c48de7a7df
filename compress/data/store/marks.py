"""What is known of a token beside its id: whether it is of an answer, begins a conversation, or ends one that was cut.

Until they are written, ids of conversations carry their marks in their three highest bits, which no vocabulary needs;
in a store the marks lie beside the ids, a byte a token.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.uint32]

ANSWER, FIRST, CUT = 1, 2, 4
_SHIFT = 29


class Marks(NamedTuple):
    """Marks of rows [n, S] of tokens."""

    answers: NDArray[np.bool_]
    """[n, S]: whether the token is to be learned."""
    starts: NDArray[np.bool_]
    """[n, S]: whether the token is the first of a conversation, or of what fills up a row."""


def marked(ids: Ids, answers: NDArray[np.bool_], *, first: bool = True) -> Ids:
    """The ids [n] of a whole conversation with their marks, of which `answers` [n] are to be learned."""
    marks = np.where(answers, ANSWER, 0).astype(np.uint32)
    marks[:1] |= FIRST if first else 0
    return np.bitwise_or(ids, np.left_shift(marks, np.uint32(_SHIFT), dtype=np.uint32), dtype=np.uint32)


def ids_of(tokens: NDArray[Any]) -> NDArray[Any]:
    """The ids alone."""
    return tokens & ((1 << _SHIFT) - 1)


def marks_of(tokens: NDArray[Any]) -> NDArray[np.uint8]:
    """The marks alone, as they are stored."""
    return (tokens >> _SHIFT).astype(np.uint8)


def answers_of(tokens: Ids) -> NDArray[np.bool_]:
    """Which of the tokens are to be learned."""
    return (marks_of(tokens) & ANSWER) > 0


def is_cut(tokens: Ids) -> bool:
    """Whether a conversation was cut."""
    return bool(marks_of(tokens[-1:]) & CUT)


def cut(tokens: Ids, length: int) -> Ids:
    """The first `length` tokens of a longer conversation."""
    kept = tokens[:length].copy()
    kept[-1:] |= np.uint32(CUT << _SHIFT)
    return kept


def filler(filled: int, seq_len: int, eos_id: int, wanted: int | None = None) -> Ids:
    """What fills up a row that has `filled` tokens, so that `wanted` more are whole in the next; nothing where they fit
    into this one. None always fills it up."""
    room = (seq_len - filled) % seq_len
    if wanted is not None and wanted <= room:
        room = 0
    return marked(np.full(room, eos_id, np.uint32), np.zeros(room, np.bool_))


class Alone(NamedTuple):
    """Conversations that have a row [m, L] each."""

    ids: NDArray[np.int64]
    """[m, L]: the longest has L tokens, and the others are filled up with id 0, on which nothing before it depends."""
    answers: NDArray[np.bool_]
    """[m, L]: whether the token is to be learned."""
    rows: NDArray[np.int64]
    """[m] number of the row that each was in."""


def alone(rows: NDArray[np.int64], marks: Marks) -> Alone:
    """The conversations of rows [n, S], but for those of which nothing is to be learned."""
    starts = marks.starts.copy()
    starts[:, 0] = True
    places = np.flatnonzero(starts)
    spans = [
        slice(first, last)
        for first, last in zip(places, [*places[1:], rows.size], strict=True)
        if marks.answers.ravel()[first:last].any()
    ]
    length = max((span.stop - span.start for span in spans), default=0)
    ids, answers = np.zeros((len(spans), length), np.int64), np.zeros((len(spans), length), np.bool_)
    for row, span in enumerate(spans):
        ids[row, : span.stop - span.start] = rows.ravel()[span]
        answers[row, : span.stop - span.start] = marks.answers.ravel()[span]
    return Alone(ids, answers, np.array([span.start // rows.shape[1] for span in spans], dtype=np.int64))


def of_text(rows: NDArray[Any], eos_id: int) -> NDArray[np.uint8]:
    """Stored marks [n, S] of rows of texts: all is to be learned, and a text begins after EOS."""
    marks = np.full(rows.shape, ANSWER, np.uint8)
    marks[:, 1:][rows[:, :-1] == eos_id] |= FIRST
    return marks


def read_marks(stored: NDArray[np.uint8]) -> Marks:
    """Stored marks [n, S]."""
    return Marks((stored & ANSWER) > 0, (stored & FIRST) > 0)
