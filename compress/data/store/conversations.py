"""Conversations as documents of a token store: each a whole one, with marks, in one row."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from compress.data.sources.instructions import NO_ANSWER
from compress.data.store.chat import Chat, Rendered, Unfit
from compress.data.store.encode import DocumentEncoder, Ids
from compress.data.store.layout import RowLayout, TextRows
from compress.data.store.marks import answers_of, cut, filler, ids_of, marked, marks_of
from compress.model.framing import begun

TOO_LONG = "is longer than a row"
NO_ANSWER_LEFT = f"{NO_ANSWER} within a row: raise data.seq_len"


@dataclasses.dataclass(frozen=True)
class ConversationEncoder:
    """Marked token ids of conversations, for rows of `seq_len` tokens."""

    chat: Chat
    seq_len: int
    start: tuple[int, ...] = ()
    """Ids that come first, unless a conversation has them by itself."""
    train_on_prompt: bool = False
    too_long: Literal["cut", "leave_out"] = "cut"
    apart: bool = True
    """Whether the first token of each is marked as such."""

    def __call__(self, documents: Sequence[str]) -> list[Ids | str]:
        """For each conversation its ids with their marks, or what is wrong with it."""
        return [
            str(found) if isinstance(found, Unfit) else self._fitted(self._tokens(found))
            for found in self.chat(documents)
        ]

    def bare(self, document: str) -> Ids:
        """The ids of a conversation alone; none of one that cannot be rendered."""
        (found,) = self.chat([document])
        return np.zeros(0, np.uint32) if isinstance(found, Unfit) else found.ids

    def with_bytes(self, document: str) -> tuple[Ids, NDArray[np.int64]]:
        """Ids as `__call__` gives them of a conversation that can be rendered, and for each the UTF-8 bytes of text it
        stands for, where it is to be learned."""
        (found,) = self.chat([document])
        assert not isinstance(found, Unfit), "what is laid out was encoded before"
        whole = self._tokens(found)
        tokens = self._fitted(whole)
        assert not isinstance(tokens, str)
        sizes = np.concatenate([np.zeros(len(whole) - len(found.bytes), np.int64), found.bytes])
        return tokens, np.where(answers_of(tokens), sizes[: len(tokens)], 0)

    def _tokens(self, found: Rendered) -> Ids:
        ids = np.array(begun(found.ids.tolist(), self.start), np.uint32)
        answers = np.concatenate([np.zeros(len(ids) - len(found.ids), np.bool_), found.answers])
        if self.train_on_prompt:
            answers = np.arange(len(ids)) >= self.apart  # nothing predicts a first token that stands apart
        return marked(ids, answers, first=self.apart)

    def _fitted(self, tokens: Ids) -> Ids | str:
        if len(tokens) > self.seq_len:
            if self.too_long == "leave_out":
                return TOO_LONG
            tokens = cut(tokens, self.seq_len)
        return tokens if answers_of(tokens)[1:].any() else NO_ANSWER_LEFT


@dataclasses.dataclass(frozen=True)
class WholeRows(RowLayout):
    """Rows of whole conversations, which follow each other as long as there is room; the rest of a row is filled up."""

    eos_id: int = 0

    def is_whole(self, length: int) -> bool:
        """True: none is longer than a row."""
        return True

    def rows(self, texts: Iterable[str], encoder: DocumentEncoder, num_rows: int) -> TextRows:
        """At most `num_rows` rows of the conversations, in their order; those beyond are left out."""
        columns: list[NDArray[np.int64]] = []
        filled = 0
        for number, text in enumerate(texts):
            ids, sizes = encoder.with_bytes(text)
            blank = filler(filled, self.seq_len, self.eos_id, len(ids))
            if filled + len(blank) >= num_rows * self.seq_len:
                break
            tokens, zeros = np.concatenate([blank, ids]).astype(np.int64), np.zeros(len(blank), np.int64)
            numbers = np.concatenate([zeros + max(number - 1, 0), np.full(len(ids), number)])
            columns.append(np.stack([tokens, np.concatenate([zeros, sizes]), numbers], axis=1))
            filled += len(tokens)
        end = filler(filled, self.seq_len, self.eos_id).astype(np.int64)
        columns.append(np.stack([end, np.zeros_like(end), np.full_like(end, max(len(columns) - 1, 0))], axis=1))
        found = np.concatenate(columns).reshape(-1, self.seq_len, 3)[:num_rows]
        return TextRows(
            ids_of(found[..., 0]).astype(np.uint32),
            found[:, 1:, 1].sum(axis=1).tolist(),
            found[..., 2],
            marks_of(found[..., 0]),
        )
