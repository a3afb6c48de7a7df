"""Where the rows of a training come from, and in which order: a token store, read in the order of its seed."""

import dataclasses
from typing import Protocol

import numpy as np

from compress.data import TokenStore
from compress.data.store.marks import Marks
from compress.data.store.pictures import PictureReader
from compress.distill.rows.batch import Batch, Ids
from compress.distill.rows.documents import Mask, document_positions, next_tokens, starts_after_eos
from compress.distill.rows.masking import Masking
from compress.distill.rows.selection import Selection


class RowSource(Protocol):
    """Rows to train on, by their place in a training, and rows held out, whose numbers come after those of the others.
    All has a fixed order; nothing is state.
    """

    @property
    def seq_len(self) -> int:
        """Tokens a row, S."""

    def row_ids(self, position: int, count: int) -> Ids:
        """Numbers [count] of the rows that a training reads after its first `position`."""

    def read(self, row_ids: Ids, position: int = 0) -> Batch:
        """Those rows, before which a training has read `position` others: what is drawn for a row is another in each
        epoch. It touches no device, so a thread may do it ahead of the step."""

    def heldout(self) -> Batch:
        """The rows to measure on; none where nothing is measured."""

    def heldout_documents(self) -> int:
        """How many documents these are from."""


@dataclasses.dataclass(frozen=True)
class StoreRows:
    """The rows of a token store, each predicting its next tokens (or hidden ones), in a new order in each epoch unless
    selected so; of conversations, those tokens that are to be learned."""

    store: TokenStore
    seed: int
    epochs: int
    num_heldout: int
    """Held-out rows to measure on."""
    apart: bool
    """Whether the documents of a row are kept apart."""
    selection: Selection | None
    """What of them is learned from, in which order; None takes all in the store's."""
    masking: Masking | None = None
    """What hides tokens for a masked LM, which predicts those; None predicts next tokens."""
    reader: PictureReader | None = None
    """What makes pixels of a store's records; None where rows have no images."""

    @property
    def seq_len(self) -> int:
        """Tokens a row, S."""
        return self.store.seq_len

    def row_ids(self, position: int, count: int) -> Ids:
        """Numbers [count] of the rows after the first `position` of all epochs."""
        return row_ids(self.store, self.selection, position, count, seed=self.seed, epochs=self.epochs)

    def read(self, row_ids: Ids, position: int = 0) -> Batch:
        """Those rows of the store; see `RowSource`."""
        batch = self._packed(self.store.rows(row_ids), row_ids, self.store.marks(row_ids))
        if self.reader is not None:
            batch = dataclasses.replace(batch, inputs=self.reader(batch.ids, self.store.records(row_ids)))
        if self.store.sources:
            batch = self._tagged(batch, self.store.sources_of(row_ids))
        if self.masking is not None:
            batch = self.masking(batch, (position + np.arange(len(row_ids))) // self.store.num_rows)
        if self.selection is None:
            return batch
        return dataclasses.replace(batch, labels=self.selection.labels(batch.labels, row_ids))

    def heldout(self) -> Batch:
        """The first `num_heldout` held-out rows."""
        rows = self.store.heldout(self.num_heldout)
        numbers = self.store.num_rows + np.arange(len(rows))
        batch = self._packed(rows, numbers, self.store.heldout_marks(self.num_heldout))
        if self.reader is not None:
            batch = dataclasses.replace(batch, inputs=self.reader(rows, self.store.heldout_records(self.num_heldout)))
        if self.masking is not None and len(rows):
            batch = self.masking.heldout(batch)
        return self._tagged(batch, self.store.heldout_sources(self.num_heldout)) if self.store.sources else batch

    def heldout_documents(self) -> int:
        """How many documents these are from."""
        return len(np.unique(self.store.heldout_documents(self.num_heldout)))

    def _tagged(self, batch: Batch, numbers: Ids) -> Batch:
        return dataclasses.replace(batch, sources=tuple(self.store.sources[number] for number in numbers))

    def _packed(self, ids: Ids, row_ids: Ids, marks: Marks | None) -> Batch:
        if marks is None:
            return packed(ids, row_ids, starts_after_eos(ids, self.store.eos_id) if self.apart else None)
        return packed(ids, row_ids, marks.starts if self.apart else None, marks.answers)


def row_ids(
    store: TokenStore, selection: Selection | None, position: int, count: int, *, seed: int, epochs: int
) -> Ids:
    """Numbers [count] of the rows that a training reads after the first `position` of all epochs."""
    if selection is not None:
        return selection.row_ids(position, count, seed=seed)
    ids: Ids = store.row_ids(position, count, seed=seed, epochs=epochs)
    return ids


def packed(ids: Ids, row_ids: Ids, starts: Mask | None = None, answers: Mask | None = None) -> Batch:
    """Rows [N, S] whose labels are their next tokens, or those of them that are of `answers` [N, S]; with `starts`
    [N, S], where documents begin, these are kept apart."""
    positions = None if starts is None else document_positions(starts)
    return Batch(ids=ids, labels=next_tokens(ids, starts, answers), row_ids=row_ids, positions=positions)
