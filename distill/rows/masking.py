"""Rows for a masked language model: some tokens hidden, and what they were as labels (Devlin et al., arXiv:1810.04805,
section 3.1; masks drawn anew in each epoch as in Liu et al., arXiv:1907.11692, section 4.1).

Each token of the text is chosen with 15%; of those chosen 80% become the mask token, 10% a random one, and 10% stay as
they are. Special tokens are never chosen, nor is the last token of a row, which has no label (see `Batch.labels`). What
is drawn for a row follows from the seed, the epoch and the row's number alone: not from the batch it is in, nor from
how often a run was stopped.
"""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.distill.objective.loss import IGNORE_INDEX
from compress.distill.rows.batch import Batch, Ids

Floats = npt.NDArray[np.float64]

_CHOSEN, _HIDDEN, _RANDOM = 0.15, 0.8, 0.1


@dataclasses.dataclass(frozen=True)
class Masking:
    """How tokens are hidden."""

    mask_id: int
    special: tuple[int, ...]
    """Token ids that are never chosen."""
    vocabulary: int
    """Random tokens are of the ids below."""
    seed: int

    @classmethod
    def of(cls, tokenizer: Any, vocabulary: int, seed: int) -> "Masking":
        """By a tokenizer, which has a mask token."""
        return cls(tokenizer.mask_token_id, tuple(tokenizer.all_special_ids), vocabulary, seed)

    def heldout(self, batch: Batch) -> Batch:
        """Held-out rows with masks that are the same in every run."""
        return dataclasses.replace(self, seed=0)(batch, np.zeros(len(batch), np.int64))

    def __call__(self, batch: Batch, epochs: Ids) -> Batch:
        """The rows of a batch with tokens hidden as in these epochs [N]; its labels are where they were."""
        shape = batch.labels.shape
        draws = [self._draw(int(epoch), int(row), shape[1]) for epoch, row in zip(epochs, batch.row_ids, strict=True)]
        chance, way, random = (np.stack(parts) for parts in zip(*draws, strict=True))
        tokens = batch.ids[:, :-1]
        chosen = (chance < _CHOSEN) & ~np.isin(tokens, self.special)
        replaced = np.where(way < _HIDDEN, self.mask_id, np.where(way < _HIDDEN + _RANDOM, random, tokens))
        ids = batch.ids.copy()
        ids[:, :-1] = np.where(chosen, replaced, tokens)
        return dataclasses.replace(batch, ids=ids, labels=np.where(chosen, tokens, IGNORE_INDEX))

    def _draw(self, epoch: int, row: int, count: int) -> tuple[Floats, Floats, Ids]:
        """For each place of a row: whether it is chosen, what becomes of it, and a random token."""
        generator = np.random.default_rng((self.seed, epoch, row))
        return generator.random(count), generator.random(count), generator.integers(self.vocabulary, size=count)
