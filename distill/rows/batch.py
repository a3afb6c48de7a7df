"""What one step learns from: rows of token ids with their labels, shared out to processes in micro-batches."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from compress.distill.objective.loss import IGNORE_INDEX
from compress.model.vision import Inputs, collated

Ids = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """N rows of S tokens, on the host."""

    ids: Ids
    """[N, S] token ids."""
    labels: Ids
    """[N, S - 1]: what is predicted at each place but the last of a row, the next token or, of a masked LM, the one
    that is hidden there; `IGNORE_INDEX` where nothing is."""
    row_ids: Ids
    """[N] numbers of the rows in their source."""
    positions: Ids | None = None
    """[N, S] positions in the document, 0 at the start of each row; None where a row is one sequence."""
    weights: npt.NDArray[np.float32] | None = None
    """[N, S - 1] what each label counts; None where each counts 1."""
    sources: tuple[str, ...] | None = None
    """[N] tags of where the rows' text comes from; None where there is one source."""
    inputs: tuple[Inputs, ...] | None = None
    """[N] what models are given beside the ids of each row; None where rows have no images."""

    def __len__(self) -> int:
        return len(self.ids)

    def by_source(self) -> "dict[str, Batch]":
        """The rows of each source by its tag, in the order of their first rows; empty where there is one source."""
        tags = self.sources or ()
        return {tag: self.take(np.flatnonzero([each == tag for each in tags])) for tag in dict.fromkeys(tags)}

    @property
    def num_labels(self) -> float:
        """What the labels that are not ignored count, all together."""
        valid = self.labels != IGNORE_INDEX
        return float(valid.sum() if self.weights is None else self.weights[valid].sum())

    def take(self, rows: Ids) -> "Batch":
        """The rows at these places [M], which may repeat."""
        return Batch(
            ids=self.ids[rows],
            labels=self.labels[rows],
            row_ids=self.row_ids[rows],
            positions=None if self.positions is None else self.positions[rows],
            weights=None if self.weights is None else self.weights[rows],
            sources=None if self.sources is None else tuple(self.sources[row] for row in rows),
            inputs=None if self.inputs is None else tuple(self.inputs[row] for row in rows),
        )


def split(batch: Batch, *, size: int, processes: int, rank: int) -> list[Batch]:
    """This process's share of a batch in pieces of at most `size` rows; every process gets as many pieces.

    Where the rows are no multiple of `processes`, copies of the first row whose labels are all ignored fill up the
    last shares.
    """
    share = -(-len(batch) // processes)
    places = np.arange(share * processes)
    filled = batch.take(np.where(places < len(batch), places, 0))
    labels = np.where((places < len(batch))[:, None], filled.labels, IGNORE_INDEX)
    own = dataclasses.replace(filled, labels=labels).take(places[rank * share : (rank + 1) * share])
    return [own.take(np.arange(i, min(i + size, share))) for i in range(0, share, size)]


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the models at once, as tensors, in pinned memory where a device will copy them."""

    ids: Tensor
    """[B, S] token ids."""
    positions: Tensor | None
    """[B, S] positions in the document; None where a row is one sequence."""
    boundaries: Tensor | None
    """Where documents begin and end in the joined rows (`document_boundaries`)."""
    predicting: Tensor | None
    """[M] places in the flattened rows that have a label; None if all but the last of each row have one."""
    labels: Tensor
    """[M] token ids, one for each place that predicts."""
    weights: Tensor | None
    """[M] what each label counts; None where each counts 1."""
    row_lengths: tuple[int, ...]
    """[B] how many of the M places are each row's; stays on the host."""
    row_ids: Ids
    """[B] numbers of the rows in their source; stays on the host."""
    sources: tuple[str, ...] | None
    """[B] tags of the rows' text; stays on the host."""
    inputs: Inputs = dataclasses.field(default_factory=dict)
    """What the models are given beside ids; empty where rows have no images."""
    guide: "Guide | None" = None
    """The same text as a teacher of another tokenizer has it; None where the teacher reads these ids."""

    def to(self, device: torch.device) -> "MicroBatch":
        """The same with its tensors on a device, without waiting for it."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "MicroBatch":
        """The same with its tensors in pinned memory."""
        return self._with(torch.Tensor.pin_memory)

    def with_label(self, states: Tensor) -> Tensor:
        """Those [M, D] of the states [B, S, D] (or [1, B * S, D], where rows are joined) that have a label."""
        if self.predicting is None:
            return states.view(*self.ids.shape, -1)[:, :-1].flatten(0, 1)
        return states.flatten(0, 1).index_select(0, self.predicting)

    def _with(self, change: Callable[[Tensor], Tensor]) -> "MicroBatch":
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in tensors.items()}
        changed["inputs"] = {name: change(tensor) for name, tensor in self.inputs.items()}
        if self.guide is not None:
            changed["guide"] = self.guide.with_tensors(change)
        return dataclasses.replace(self, **changed)


@dataclasses.dataclass(frozen=True)
class Guide:
    """A micro-batch as a teacher of another tokenizer reads it."""

    rows: MicroBatch
    """The teacher's own, [B, T]; its A places that predict are those that are aligned with labels."""
    places: Tensor
    """[A] those of the M labels."""
    others: Tensor
    """[M - A] the labels that are aligned with nothing."""
    divisor: float
    """What sums over aligned labels are divided by, so that the mean over processes is the mean over the batch's."""

    def with_tensors(self, change: Callable[[Tensor], Tensor]) -> "Guide":
        """The same with its tensors changed."""
        rows = self.rows._with(change)
        return dataclasses.replace(self, rows=rows, places=change(self.places), others=change(self.others))


def document_boundaries(positions: Ids) -> npt.NDArray[np.int32]:
    """Where documents begin and end once rows [B, S] with these positions are joined, [C + 1] from 0 to B * S.

    Empty ones at the end fill them up to a power of two: a compiled model has a graph for each number of them.
    """
    starts = np.flatnonzero(positions.ravel() == 0)
    room = 1 << (len(starts) - 1).bit_length()
    return np.concatenate([starts, np.full(room - len(starts) + 1, positions.size)]).astype(np.int32)


def micro_batch(piece: Batch) -> MicroBatch:
    """A piece of a batch as tensors."""
    of_row = piece.labels != IGNORE_INDEX
    valid = of_row.ravel()
    predicting = None
    if not valid.all():
        places = np.arange(piece.ids.size).reshape(piece.ids.shape)[:, :-1]
        predicting = torch.from_numpy(places.ravel()[valid])
    return MicroBatch(
        ids=torch.from_numpy(piece.ids),
        positions=None if piece.positions is None else torch.from_numpy(piece.positions),
        boundaries=None if piece.positions is None else torch.from_numpy(document_boundaries(piece.positions)),
        predicting=predicting,
        labels=torch.from_numpy(piece.labels.ravel()[valid]),
        weights=None if piece.weights is None else torch.from_numpy(piece.weights.ravel()[valid]),
        row_lengths=tuple(of_row.sum(1).tolist()),
        row_ids=piece.row_ids,
        sources=piece.sources,
        inputs={} if piece.inputs is None else collated(piece.inputs),
    )


class Share(NamedTuple):
    """One process's share of a step's rows."""

    num_rows: int
    """Rows of the whole batch, over all processes."""
    pieces: list[MicroBatch]
    divisor: float
    """What sums of losses are divided by, so that the mean over processes is the mean over the batch's labels."""


def share(batch: Batch, *, size: int, processes: int, rank: int) -> Share:
    """This process's share of a batch in micro-batches of at most `size` rows. It touches no device."""
    pieces = split(batch, size=size, processes=processes, rank=rank)
    return Share(len(batch), [micro_batch(piece) for piece in pieces], (batch.num_labels or 1.0) / processes)
