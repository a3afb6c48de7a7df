"""Which sequences go through the model together, and which of their tokens are computed once for all of them."""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from compress.inference.tree import Ids, common_prefix

_ROW_TOKENS = 1024
_STEM_SHARE = 0.25
_PREFIX_TOKENS = 32
_PREFIX_SAVES = 512
_MASKED_TOKENS = 4096


@dataclasses.dataclass(frozen=True)
class Job:
    """One batch: `rows` of sequence numbers (a row of several is a tree), on a common `prefix`.

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
        """All sequence numbers, in the order of the rows."""
        return [number for row in self.rows for number in row]

    def content(self, sequences: Sequence[Ids]) -> list[str]:
        """What decides the result, as hashes: the prefix with its cuts, and each row's sequences."""
        rows = [[sequences[number] for number in row] for row in self.rows]
        return [_digest([self.prefix, np.array(self.cuts, np.int64)]), *(_digest(row) for row in rows)]


Cost = Callable[[int, int, int, int], int]
"""Tokens of a batch of (rows, tokens of its longest row, sequences, tokens of the prefix)."""


def scoring_cost(rows: int, longest: int, sequences: int, base: int) -> int:
    """Padded tokens of a forward pass; a prefix token costs no layer but its keys and values, about a quarter."""
    return rows * (longest + base // 4)


def plan(
    sequences: Sequence[Ids], first: Sequence[int], budget: int, *, share: bool = True, cost: Cost = scoring_cost
) -> list[Job]:
    """Jobs over all of the distinct `sequences`, each within `budget` tokens by `cost`, or of one row.

    Position `first[i]` of sequence i and all after it are read off: none of them lies in a prefix. With `share=False`
    every sequence is a row of its own, without a prefix.
    """
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].astype(">u4").tobytes())
    table = _Table(
        order,
        np.array([len(sequences[i]) for i in order], np.int64),
        np.array([first[i] for i in order], np.int64),
        np.array([0, *(common_prefix(sequences[a], sequences[b]) for a, b in itertools.pairwise(order))]),
        budget,
        cost,
    )
    if not share:
        return table.fill([(at, at + 1) for at in range(len(order))], np.empty(0, np.int64), ())
    jobs: list[Job] = []
    left: list[tuple[int, int, tuple[int, ...]]] = [(0, len(order), ())]
    while left:
        start, end, cuts = left.pop()
        base = cuts[-1] if cuts else 0
        rows, groups = table.divide(start, end, base)
        jobs += table.fill(rows, sequences[order[start]][:base] if order else np.empty(0, np.int64), cuts)
        left += [(a, b, (*cuts, cut)) for a, b, cut in reversed(groups)]
    return jobs


@dataclasses.dataclass(frozen=True)
class _Table:
    """The sequences in lexicographic order: number, length, first position read, tokens shared with the one before."""

    order: list[int]
    lengths: NDArray[np.int64]
    first: NDArray[np.int64]
    shared: NDArray[np.int64]
    budget: int
    cost: Cost

    def divide(self, start: int, end: int, base: int) -> tuple[list[tuple[int, int]], list[tuple[int, int, int]]]:
        """Cut a range that is alike up to `base` into ranges for a row each, and ranges with a longer prefix."""
        rows: list[tuple[int, int]] = []
        groups: list[tuple[int, int, int]] = []
        left = [(start, end)] if end > start else []
        while left:
            start, end = left.pop()
            if end - start == 1:
                rows.append((start, end))
                continue
            least = int(self.shared[start + 1 : end].min())
            stem = min(least, int(self.first[start:end].min())) - base
            tokens, count = self._tokens(start, end, base), end - start
            fits = self.cost(1, tokens, count, base) <= self.budget and tokens <= _ROW_TOKENS
            if fits and stem >= _STEM_SHARE * (self.lengths[start:end].mean() - base):
                rows.append((start, end))
            elif self._prefix_pays(start, end, base, stem):
                groups.append((start, end, base + stem))
            else:
                borders = [start, *(start + 1 + np.flatnonzero(self.shared[start + 1 : end] == least)).tolist(), end]
                left += list(itertools.pairwise(borders))[::-1]
        return rows, groups

    def fill(self, rows: Sequence[tuple[int, int]], prefix: Ids, cuts: tuple[int, ...]) -> list[Job]:
        """Rows of similar size together, the largest first."""
        base = len(prefix)
        sizes = {row: self._tokens(*row, base) for row in rows}
        jobs: list[Job] = []
        batch: list[tuple[int, int]] = []
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

    def _prefix_pays(self, start: int, end: int, base: int, stem: int) -> bool:
        """Whether a range is to have its next `stem` tokens as a prefix.

        Rows on a prefix need a mask of their tokens times all they see; without one, long rows need none.
        """
        beyond = int(self.lengths[start:end].max()) - base - stem
        return stem >= _PREFIX_TOKENS and stem * (end - start - 1) >= _PREFIX_SAVES and beyond <= _MASKED_TOKENS

    def _tokens(self, start: int, end: int, base: int) -> int:
        """Nodes of the tree of a range."""
        return int(self.lengths[start:end].sum() - self.shared[start + 1 : end].sum()) - base

    def _job(self, rows: Sequence[tuple[int, int]], prefix: Ids, cuts: tuple[int, ...]) -> Job:
        return Job(prefix, cuts, tuple(tuple(self.order[start:end]) for start, end in rows))


def _digest(arrays: Sequence[Ids]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(len(array).to_bytes(8, "big") + array.astype(">i8").tobytes())
    return digest.hexdigest()
