"""Which sequences go through the model together, and which of their tokens are computed once for all of them.

Sorted sequences with a common beginning stand side by side. Three numberings meet here:

    number   a sequence's place in the caller's list, by which jobs name it
    rank     its place in sorted order; a `Span` is a range of ranks
    token    a place within sequences; the first `base` tokens of a span's sequences are the prefix they stand on

By what its sequences share beyond the base, their stem, a span becomes one row (a tree: it fits a batch, and the stem
is a good part of it), or stands on a longer prefix (computing the stem once pays), or falls apart where neighbours
share no more than the stem.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from compress.inference.tree import Ids, common_prefix

Value = TypeVar("Value")

_ROW_TOKENS = 1024
_STEM_SHARE = 0.25
_PREFIX_TOKENS = 32
_PREFIX_SAVES = 512
_MASKED_TOKENS = 4096


@dataclasses.dataclass(frozen=True)
class Job:
    """One batch: `rows` of numbers of sequences (a row of several is a tree), on a common `prefix`.

    The prefix is encoded piece by piece, up to each of `cuts` in turn; its last cut is its length, and jobs that begin
    with the same pieces share them. A job's result depends on nothing but the job.
    """

    prefix: Ids
    cuts: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]

    @property
    def base(self) -> int:
        """Tokens of the prefix."""
        return self.cuts[-1] if self.cuts else 0

    @property
    def members(self) -> list[int]:
        """All numbers of sequences, in the order of the rows."""
        return [number for row in self.rows for number in row]

    def in_rows(self, values: Sequence[Value]) -> list[list[Value]]:
        """What belongs to each sequence, given for all of them by number, in the rows' places."""
        return [[values[number] for number in row] for row in self.rows]

    def content(self, rows: Sequence[Sequence[Ids]]) -> list[str]:
        """What decides the result, as hashes: the prefix with its cuts, and the sequences `rows` of each row."""
        return [_digest([self.prefix, np.array(self.cuts, np.int64)]), *map(_digest, rows)]


Span = tuple[int, int]
"""Ranks `start` to `end` - 1."""


Cost = Callable[[int, int, int, int], int]
"""Tokens of a batch of (rows, tokens of its longest row, sequences, tokens of the prefix)."""


def scoring_cost(rows: int, longest: int, sequences: int, base: int) -> int:
    """Padded tokens of a forward pass; a prefix token costs no layer but its keys and values, about a quarter."""
    return rows * (longest + base // 4)


def decoding_cost(limit: int) -> Cost:
    """Tokens that the caches of a batch hold at most, whose answers have up to `limit` tokens."""

    def cost(_: int, longest: int, sequences: int, base: int) -> int:
        return sequences * (base + longest + limit)

    return cost


def plan(
    sequences: Sequence[Ids], first: Sequence[int], budget: int, *, share: bool = True, cost: Cost = scoring_cost
) -> list[Job]:
    """Jobs over all of the distinct `sequences`, each within `budget` tokens by `cost`, or of one row.

    Position `first[i]` of sequence i and all after it are read off: none of them lies in a prefix. With `share=False`
    every sequence is a row of its own, without a prefix.
    """
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].astype(">u4").tobytes())
    table = _Sorted(
        order,
        np.array([len(sequences[i]) for i in order], np.int64),
        np.array([first[i] for i in order], np.int64),
        np.array([0, *(common_prefix(sequences[a], sequences[b]) for a, b in itertools.pairwise(order))]),
        budget,
        cost,
    )
    if not share:
        return table.batches([(rank, rank + 1) for rank in range(len(order))], np.empty(0, np.int64), ())
    jobs: list[Job] = []
    # Depth first: the jobs on one prefix follow each other, so that one chain of prefixes is in memory at a time.
    left: list[tuple[Span, tuple[int, ...]]] = [((0, len(order)), ())] if order else []
    while left:
        span, cuts = left.pop()
        base = cuts[-1] if cuts else 0
        rows, deeper = table.divide(span, base)
        jobs += table.batches(rows, sequences[order[span[0]]][:base], cuts)
        left += [(inner, (*cuts, longer)) for inner, longer in reversed(deeper)]
    return jobs


@dataclasses.dataclass(frozen=True)
class _Sorted:
    """The sequences by rank: number, length, first position read, tokens shared with the rank before."""

    order: list[int]
    lengths: NDArray[np.int64]
    first: NDArray[np.int64]
    shared: NDArray[np.int64]
    budget: int
    cost: Cost

    def divide(self, span: Span, base: int) -> tuple[list[Span], list[tuple[Span, int]]]:
        """A span that is alike up to `base`, cut into spans for a row each, and spans with the longer base of each."""
        rows: list[Span] = []
        deeper: list[tuple[Span, int]] = []
        left = [span]
        while left:
            start, end = span = left.pop()
            if end - start == 1:
                rows.append(span)
                continue
            # The stem ends where the first two neighbours part, or where the first position is read off.
            least = int(self.shared[start + 1 : end].min())
            stem = min(least, int(self.first[start:end].min())) - base
            if self._is_row(span, base, stem):
                rows.append(span)
            elif self._prefix_pays(span, base, stem):
                deeper.append((span, base + stem))
            else:
                parted = start + 1 + np.flatnonzero(self.shared[start + 1 : end] == least)
                left += list(itertools.pairwise([start, *parted.tolist(), end]))[::-1]
        return rows, deeper

    def batches(self, rows: Sequence[Span], prefix: Ids, cuts: tuple[int, ...]) -> list[Job]:
        """Rows of similar size together, the largest first."""
        base = len(prefix)
        sizes = {row: self._tokens(row, base) for row in rows}
        jobs: list[Job] = []
        batch: list[Span] = []
        count = 0
        for row in sorted(rows, key=lambda row: (-sizes[row], row)):
            count += row[1] - row[0]
            # A tree's mask would be as wide as the long row beside it.
            unlike = batch and not base and sizes[batch[0]] > _ROW_TOKENS and row[1] - row[0] > 1
            if unlike or (batch and self.cost(len(batch) + 1, sizes[batch[0]], count, base) > self.budget):
                jobs.append(self._job(batch, prefix, cuts))
                batch, count = [], row[1] - row[0]
            batch.append(row)
        return [*jobs, self._job(batch, prefix, cuts)] if batch else jobs

    def _is_row(self, span: Span, base: int, stem: int) -> bool:
        """Whether a span is to be one tree: it fits a batch, and its sequences share a good part of their tokens."""
        tokens = self._tokens(span, base)
        fits = self.cost(1, tokens, span[1] - span[0], base) <= self.budget and tokens <= _ROW_TOKENS
        return fits and bool(stem >= _STEM_SHARE * (self.lengths[slice(*span)].mean() - base))

    def _prefix_pays(self, span: Span, base: int, stem: int) -> bool:
        """Whether a span is to have its next `stem` tokens as a prefix.

        Rows on a prefix need a mask of their tokens times all they see; without one, long rows need none.
        """
        beyond = int(self.lengths[slice(*span)].max()) - base - stem
        saved = stem * (span[1] - span[0] - 1)
        return stem >= _PREFIX_TOKENS and saved >= _PREFIX_SAVES and beyond <= _MASKED_TOKENS

    def _tokens(self, span: Span, base: int) -> int:
        """Nodes of the tree of a span."""
        start, end = span
        return int(self.lengths[start:end].sum() - self.shared[start + 1 : end].sum()) - base

    def _job(self, rows: Sequence[Span], prefix: Ids, cuts: tuple[int, ...]) -> Job:
        return Job(prefix, cuts, tuple(tuple(self.order[start:end]) for start, end in rows))


def _digest(arrays: Sequence[Ids]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(len(array).to_bytes(8, "big") + array.astype(">i8").tobytes())
    return digest.hexdigest()
