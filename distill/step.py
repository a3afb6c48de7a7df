"""One optimizer step's gradients: micro-batches on every process whose sum is the whole batch's gradient."""

import contextlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from compress.architecture import OutputHead, hidden_states, output_head
from compress.distill.config import DistillConfig
from compress.distill.loss import IGNORE_INDEX, DistillationLoss, distillation_loss

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


class StudentWithLoss(nn.Module):
    """The student and its loss as one module.

    Data-parallel wrappers synchronise the gradients of what runs inside `forward`; with the loss in it, that
    includes the output head, whose weight the loss multiplies itself.
    """

    def __init__(self, student: Any, config: DistillConfig, teacher_head: OutputHead | None, shared: int) -> None:
        super().__init__()
        self.student = student
        self._config, self._shared = config, shared
        self._teacher_head = None if teacher_head is None else _first_ids(teacher_head, shared)

    def forward(
        self, rows: Tensor, labels: Tensor, teacher_hidden: Tensor | None, num_tokens: float, ignore_index: int | None
    ) -> DistillationLoss:
        """Loss of `rows` [B, S] whose sums are divided by `num_tokens`; `teacher_hidden` is [B, S, Dt]."""
        hidden = hidden_states(self.student, rows)[:, :-1].flatten(0, 1)
        return distillation_loss(
            hidden,
            _first_ids(output_head(self.student), self._shared),
            None if teacher_hidden is None else teacher_hidden[:, :-1].flatten(0, 1),
            self._teacher_head,
            labels.flatten(),
            alpha=self._config.alpha,
            temperature=self._config.temperature,
            divergence=self._config.divergence,
            ignore_index=ignore_index,
            chunk_tokens=self._config.chunk_tokens,
            num_tokens=num_tokens,
        )


def _first_ids(head: OutputHead, shared: int) -> OutputHead:
    if len(head.weight) == shared:
        return head
    bias = None if head.bias is None else head.bias[:shared]
    return OutputHead(head.weight[:shared], bias, head.scale, head.softcap)


class Losses:
    """Runs micro-batches through teacher and student; `model` is a `StudentWithLoss`, prepared by `accelerator`."""

    def __init__(self, accelerator: Any, model: Any, teacher: Any | None, micro_batch_rows: int) -> None:
        self._accelerator, self._model, self._teacher = accelerator, model, teacher
        self._rows = micro_batch_rows

    def backward(self, rows: Ids, labels: Ids) -> Tensor:
        """Add the gradient of a whole batch's mean loss to the parameters; returns its [soft, hard] losses, nats.

        Sums over micro-batches and processes are divided once, by the batch's number of valid labels.
        """
        pieces, divisor = self._pieces(rows, labels)
        losses = torch.zeros(2, dtype=torch.float64, device=self._accelerator.device)
        for number, piece in enumerate(pieces, 1):
            last = number == len(pieces)
            with contextlib.nullcontext() if last else self._accelerator.no_sync(self._model):
                out = self._forward(piece, divisor)
                self._accelerator.backward(out.loss)
            losses += torch.stack([out.soft, out.hard])
        return self._mean_over_processes(losses)

    @torch.no_grad()
    def measure(self, rows: Ids, labels: Ids) -> tuple[float, float]:
        """Mean soft and hard losses of rows, nats a token, without gradients and without dropout."""
        pieces, divisor = self._pieces(rows, labels)
        losses = torch.zeros(2, dtype=torch.float64, device=self._accelerator.device)
        self._model.eval()
        for piece in pieces:
            out = self._forward(piece, divisor)
            losses += torch.stack([out.soft, out.hard])
        self._model.train()
        soft, hard = self._mean_over_processes(losses).tolist()
        return soft, hard

    def _pieces(self, rows: Ids, labels: Ids) -> tuple[list[MicroBatch], float]:
        """This process's micro-batches, and what each divides its sums by so that the mean over processes is right."""
        processes, rank = self._accelerator.num_processes, self._accelerator.process_index
        valid = int(np.count_nonzero(labels != IGNORE_INDEX))
        pieces = micro_batches(rows, labels, size=self._rows, processes=processes, rank=rank)
        return pieces, max(valid, 1) / processes

    def _forward(self, piece: MicroBatch, divisor: float) -> DistillationLoss:
        device = self._accelerator.device
        rows = torch.from_numpy(piece.rows).to(device, non_blocking=True)
        labels = torch.from_numpy(piece.labels).to(device, non_blocking=True)
        teacher_hidden = None
        if self._teacher is not None:
            with torch.inference_mode():
                teacher_hidden = hidden_states(self._teacher, rows)
        ignore_index = IGNORE_INDEX if (piece.labels == IGNORE_INDEX).any() else None
        out: DistillationLoss = self._model(rows, labels, teacher_hidden, divisor, ignore_index)
        return out

    def _mean_over_processes(self, losses: Tensor) -> Tensor:
        reduced: Tensor = self._accelerator.reduce(losses, reduction="mean")
        return reduced
