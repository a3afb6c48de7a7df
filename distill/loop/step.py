"""One optimizer step's gradients: micro-batches on every process whose sum is the whole batch's gradient."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from compress.distill.config import DistillConfig
from compress.distill.objective.loss import IGNORE_INDEX, DistillationLoss, distillation_loss
from compress.distill.rows.documents import document_positions, next_tokens, packed_hidden_states
from compress.distill.students.sharding import free_gathered, is_sharded
from compress.model.parts import OutputHead, output_head

Ids = npt.NDArray[np.int64]


class MicroBatch(NamedTuple):
    """Rows [B, S] that go through the models at once, and labels [B, S - 1]: the next token of all but the last."""

    rows: Ids
    labels: Ids


def micro_batches(rows: Ids, labels: Ids, *, size: int, processes: int, rank: int) -> list[MicroBatch]:
    """This process's share of a batch in pieces of at most `size` rows; every process gets as many pieces.

    `rows` [N, S] and `labels` [N, S - 1] are the whole batch's. Where N is no multiple of `processes`, rows whose
    labels are all ignored fill up the last shares.
    """
    share = -(-len(rows) // processes)
    missing = share * processes - len(rows)
    if missing:
        rows = np.concatenate([rows, np.repeat(rows[:1], missing, axis=0)])
        labels = np.concatenate([labels, np.full_like(labels[:1], IGNORE_INDEX).repeat(missing, axis=0)])
    own = slice(rank * share, (rank + 1) * share)
    rows, labels = rows[own], labels[own]
    return [MicroBatch(rows[i : i + size], labels[i : i + size]) for i in range(0, share, size)]


class Inputs(NamedTuple):
    """A micro-batch as tensors, in pinned memory where they will be copied to an accelerator."""

    rows: Tensor
    """[B, S] token ids."""
    positions: Tensor | None
    """[B, S] positions in the document; None where a row is one sequence."""
    predicting: Tensor | None
    """[M] places in the flattened rows that have a label; None if all but the last of each row have one."""
    labels: Tensor
    """[M] token ids, one for each place that predicts."""

    def to(self, device: torch.device) -> "Inputs":
        """The same on a device, without waiting for it."""
        return Inputs(*(None if t is None else t.to(device, non_blocking=True) for t in self))  # type: ignore[arg-type]


class Batch(NamedTuple):
    """One process's share of a step's rows."""

    num_rows: int
    """Rows of the whole batch, over all processes."""
    pieces: list[Inputs]
    divisor: float
    """What sums of losses are divided by, so that the mean over processes is the mean over the batch's labels."""


class StudentWithLoss(nn.Module):
    """The student and its loss as one module.

    Data-parallel wrappers synchronise the gradients of what runs inside `forward`; with the loss in it, that
    includes the output head, whose weight the loss multiplies itself. `teacher_head` is asked each time: the weights
    of a teacher that is split over processes exist only around its forward pass.
    """

    def __init__(
        self, student: Any, config: DistillConfig, teacher_head: Callable[[], OutputHead] | None, shared: int
    ) -> None:
        super().__init__()
        self.student = student
        self._config, self._shared, self._teacher_head = config, shared, teacher_head

    def forward(self, inputs: Inputs, teacher_hidden: Tensor | None, num_tokens: float) -> DistillationLoss:
        """Loss of a micro-batch whose sums are divided by `num_tokens`; `teacher_hidden` is [B, S, Dt]."""
        hidden = packed_hidden_states(self.student, inputs.rows, inputs.positions)
        return distillation_loss(
            _predicting(hidden, inputs),
            _first_ids(output_head(self.student), self._shared),
            None if teacher_hidden is None else _predicting(teacher_hidden, inputs),
            None if self._teacher_head is None else _first_ids(self._teacher_head(), self._shared),
            inputs.labels,
            alpha=self._config.alpha,
            temperature=self._config.temperature,
            divergence=self._config.divergence,
            ignore_index=None,
            chunk_tokens=self._config.chunk_tokens,
            num_tokens=num_tokens,
            fused=self._config.fused_loss,
        )


def _predicting(hidden: Tensor, inputs: Inputs) -> Tensor:
    """The hidden states [M, D], of [B, S, D], that have a label."""
    if inputs.predicting is None:
        return hidden[:, :-1].flatten(0, 1)
    return hidden.flatten(0, 1).index_select(0, inputs.predicting)


def _first_ids(head: OutputHead, shared: int) -> OutputHead:
    if len(head.weight) == shared:
        return head
    bias = None if head.bias is None else head.bias[:shared]
    return OutputHead(head.weight[:shared], bias, head.scale, head.softcap)


class Teacher(nn.Module):
    """The teacher as a module whose forward pass gives hidden states: what can be split over processes as a whole."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Inputs) -> Tensor:
        """Last hidden states [B, S, Dt] of `inputs.rows`."""
        return packed_hidden_states(self.model, inputs.rows, inputs.positions)

    def head(self) -> OutputHead:
        """What makes its logits of them; where it is split, only between its forward passes and `free_gathered`."""
        return output_head(self.model)


class Losses:
    """Runs micro-batches through teacher and student; `model` is a `StudentWithLoss`, prepared by `accelerator`.

    With `eos_id` the documents of a row, each ended by that token, are kept apart.
    """

    def __init__(
        self,
        accelerator: Any,
        model: Any,
        teacher: Teacher | None,
        micro_batch_rows: int,
        *,
        eos_id: int | None = None,
    ) -> None:
        self._accelerator, self._model, self._teacher = accelerator, model, teacher
        self._rows, self._eos_id = micro_batch_rows, eos_id
        self._sharded = is_sharded(model)

    def batch(self, rows: Ids, labels: Ids | None = None) -> Batch:
        """This process's share of a whole batch's rows [N, S] and labels [N, S - 1], by default the next tokens.

        It touches no device, so a thread may do it ahead of the step.
        """
        labels = next_tokens(rows, self._eos_id) if labels is None else labels
        processes, rank = self._accelerator.num_processes, self._accelerator.process_index
        valid = int(np.count_nonzero(labels != IGNORE_INDEX))
        pieces = micro_batches(rows, labels, size=self._rows, processes=processes, rank=rank)
        return Batch(len(rows), [self._inputs(piece) for piece in pieces], max(valid, 1) / processes)

    def backward(self, batch: Batch) -> Tensor:
        """Add the gradient of a whole batch's mean loss to the parameters; returns its [soft, hard] losses, nats.

        Sums over micro-batches and processes are divided once, by the batch's number of valid labels. Processes add
        their gradients at the last micro-batch; split ones at each, since whole gradients would not fit.
        """
        losses = torch.zeros(2, dtype=torch.float64, device=self._accelerator.device)
        for number, piece in enumerate(batch.pieces, 1):
            adds = self._sharded or number == len(batch.pieces)
            with contextlib.nullcontext() if adds else self._accelerator.no_sync(self._model):
                out = self._forward(piece, batch.divisor)
                self._accelerator.backward(out.loss)
            losses += torch.stack([out.soft, out.hard])
        return self._mean_over_processes(losses)

    @torch.no_grad()
    def measure(self, batch: Batch) -> tuple[float, float]:
        """Mean soft and hard losses of a batch, nats a token, without gradients and without dropout."""
        losses = torch.zeros(2, dtype=torch.float64, device=self._accelerator.device)
        self._model.eval()
        for piece in batch.pieces:
            out = self._forward(piece, batch.divisor)
            losses += torch.stack([out.soft, out.hard])
        self._model.train()
        free_gathered(self._model)
        soft, hard = self._mean_over_processes(losses).tolist()
        return soft, hard

    def _inputs(self, piece: MicroBatch) -> Inputs:
        valid = (piece.labels != IGNORE_INDEX).ravel()
        predicting = None
        if not valid.all():
            rows, length = piece.rows.shape
            places = np.arange(rows * length).reshape(rows, length)[:, :-1]
            predicting = torch.from_numpy(places.ravel()[valid])
        inputs = Inputs(
            rows=torch.from_numpy(piece.rows),
            positions=None if self._eos_id is None else torch.from_numpy(document_positions(piece.rows, self._eos_id)),
            predicting=predicting,
            labels=torch.from_numpy(piece.labels.ravel()[valid]),
        )
        if self._accelerator.device.type != "cuda":
            return inputs
        return Inputs(*(None if t is None else t.pin_memory() for t in inputs))  # type: ignore[arg-type]

    def _forward(self, piece: Inputs, divisor: float) -> DistillationLoss:
        inputs = piece.to(self._accelerator.device)
        teacher_hidden = None
        if self._teacher is not None:
            with torch.no_grad() if is_sharded(self._teacher) else torch.inference_mode():
                teacher_hidden = self._teacher(inputs)
        out: DistillationLoss = self._model(inputs, teacher_hidden, divisor)
        return out

    def _mean_over_processes(self, losses: Tensor) -> Tensor:
        reduced: Tensor = self._accelerator.reduce(losses, reduction="mean")
        return reduced
