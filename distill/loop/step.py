"""One optimizer step's gradients: micro-batches on every process whose sum is the whole batch's gradient."""

import contextlib
import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from compress.distill.objective.objective import Objective, Term
from compress.distill.objective.part import Outcome
from compress.distill.objective.schedules import Setting
from compress.distill.objective.signals import Signals, read_signals
from compress.distill.rows.batch import Batch, MicroBatch, Share, share
from compress.distill.students.sharding import free_gathered, is_sharded
from compress.distill.teachers.source import TeacherSource

Advance = Callable[[int], None]
"""Is told of each so many tokens of the whole batch that are done."""

_ENOUGH = 8
"""Micro-batches that a standard error is worth something from."""


class StudentWithLoss(nn.Module):
    """The student and its objective as one module.

    Data-parallel wrappers synchronise the gradients of what runs inside `forward`; with the loss in it, that
    includes the output head, whose weight the loss multiplies itself.
    """

    def __init__(self, student: Any, objective: Objective, vocabulary: int) -> None:
        super().__init__()
        self.student, self.objective, self.learned = student, objective, objective.learned
        self._vocabulary = vocabulary

    def forward(self, batch: MicroBatch, teacher: Signals | None, num_tokens: float, setting: Setting) -> Outcome:
        """What the objective makes of a micro-batch; in evaluation mode, with what runs are compared by."""
        signals = read_signals(self.student, batch, self.objective.needs.student_blocks, self._vocabulary)
        loss = self.objective if self.training else self.objective.measure
        return loss(signals, teacher, batch, num_tokens, setting)


class Losses:
    """Runs micro-batches through teacher and student; `model` is a `StudentWithLoss`, prepared by `accelerator`."""

    def __init__(
        self,
        accelerator: Any,
        model: Any,
        objective: Objective,
        teacher: TeacherSource | None,
        micro_batch_rows: int,
    ) -> None:
        self._accelerator, self._model, self._teacher = accelerator, model, teacher
        self._objective, self._rows = objective, micro_batch_rows
        self._sharded = is_sharded(model)
        parts = teacher.modules() if isinstance(teacher, nn.Module) else ()
        kept = objective.needs.autograd or any(map(is_sharded, parts))
        self._without_gradient = torch.no_grad if kept else torch.inference_mode

    def share(self, batch: Batch) -> Share:
        """This process's share of a batch. It touches no device, so a thread may do it ahead of the step."""
        processes, rank = self._accelerator.num_processes, self._accelerator.process_index
        found = share(batch, size=self._rows, processes=processes, rank=rank)
        if self._teacher is not None:
            for piece in found.pieces:
                self._teacher.ahead(piece)
        if self._accelerator.device.type != "cuda":
            return found
        return found._replace(pieces=[piece.pinned() for piece in found.pieces])

    def backward(self, batch: Share, setting: Setting, advance: Advance = lambda _: None) -> dict[str, Term]:
        """Add the gradient of a whole batch's mean loss to the parameters; returns its terms, scalars on the device.

        Sums over micro-batches and processes are divided once, by the batch's number of valid labels. Processes add
        their gradients at the last micro-batch; split ones at each, since whole gradients would not fit.
        """
        values: list[Tensor] = []
        for number, piece in enumerate(batch.pieces, 1):
            adds = self._sharded or number == len(batch.pieces)
            with contextlib.nullcontext() if adds else self._accelerator.no_sync(self._model):
                out = self._forward(piece, batch.divisor, setting)
                self._accelerator.backward(out.loss)
            values.append(out.raw)
            advance(self._tokens(piece))
        return self._objective.terms(self._mean_over_processes(values), setting)

    @torch.no_grad()
    def measure(self, batch: Share, setting: Setting, advance: Advance = lambda _: None) -> dict[str, float]:
        """Means of a batch by name, as `Objective.measured` has them, without gradients and without dropout.

        Of what runs are compared by also `NAME_stderr`, over micro-batches, of which a document's rows are rarely in
        two; not where those are too few to say.
        """
        self._model.eval()
        values: list[Tensor] = []
        for piece in batch.pieces:
            values.append(self._forward(piece, batch.divisor, setting).raw)
            advance(self._tokens(piece))
        self._model.train()
        free_gathered(self._model)
        squares = torch.stack([value.square() for value in values]).sum(dim=0)
        means, squares = self._mean_over_processes(values), self._accelerator.reduce(squares, reduction="mean")
        found = self._objective.measured(means.tolist(), setting)
        processes = self._accelerator.num_processes
        if (count := processes * len(values)) < _ENOUGH:
            return found
        # the parts of the mean are values / processes, `count` of them
        variances = count / (count - 1) * (squares / processes - means.square() / count)
        names, errors = self._objective.yardstick.names, variances.clamp(min=0).sqrt().tolist()
        return found | {f"{name}_stderr": error for name, error in zip(names, errors[-len(names) :], strict=True)}

    def _forward(self, piece: MicroBatch, divisor: float, setting: Setting) -> Outcome:
        piece = piece.to(self._accelerator.device)
        teacher = None
        if self._teacher is not None:
            with self._without_gradient():
                teacher = self._teacher(piece)
        out: Outcome = self._model(piece, teacher, divisor, setting)
        return out

    def _tokens(self, piece: MicroBatch) -> int:
        """Tokens of a micro-batch and of those that the other processes have meanwhile."""
        return piece.ids.numel() * int(self._accelerator.num_processes)

    def _mean_over_processes(self, values: list[Tensor]) -> Tensor:
        """The micro-batches' values [K] added up, and the mean of that over processes."""
        reduced: Tensor = self._accelerator.reduce(functools.reduce(operator.add, values), reduction="mean")
        return reduced
