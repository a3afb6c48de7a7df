"""Where the teacher's signals come from: a model that is run on each micro-batch, unless a cache has them."""

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from compress.data.alignment import Retelling
from compress.distill.config import DistillConfig
from compress.distill.objective.signals import Needs, Signals, read_signals
from compress.distill.resources.auto import Here
from compress.distill.resources.loading import compile_backbone, load_checked
from compress.distill.rows.batch import Batch, MicroBatch
from compress.distill.students.sharding import shard_model
from compress.distill.teachers.other_tokenizer import RetoldTeacher
from compress.distill.teachers.quantization import quantize_teacher


class TeacherSource(Protocol):
    """The teacher's signals, for the token ids that it shares with the student.

    A micro-batch says which rows of the data it is of, for a source that knows them, and of which sources their text
    is, for one that listens to several teachers.
    """

    def ahead(self, batch: MicroBatch) -> MicroBatch:
        """Is told of a micro-batch that it will be asked for, by a thread, and returns it with what it needs beside it:
        it touches no device."""

    def __call__(self, batch: MicroBatch) -> Signals:
        """What the objective asked for, without gradient, with the head that makes logits of the hidden states.

        It holds until the next call. Called without autograd, with tensors on the run's device.
        """


class LiveTeacher(nn.Module):
    """A model that is run; a module, so that it can be split over processes as a whole."""

    def __init__(self, model: Any, needs: Needs, vocabulary: int) -> None:
        super().__init__()
        self.model = model
        self._blocks, self._vocabulary = needs.teacher_blocks, vocabulary

    def ahead(self, batch: MicroBatch) -> MicroBatch:
        """A model waits for its input."""
        return batch

    def forward(self, batch: MicroBatch) -> Signals:
        """One forward pass. The head of a teacher that is split exists from here to the next `free_gathered`."""
        return read_signals(self.model, batch, self._blocks, self._vocabulary)


class OpenedTeacher(NamedTuple):
    """A source, or none, and what quantising changed."""

    source: TeacherSource | None = None
    kl: float | None = None
    """KL(exact || quantised) on held-out rows, nats a token; None where the teacher is exact."""


def open_teacher(
    config: DistillConfig,
    folder: Path,
    here: Here,
    *,
    needs: Needs,
    vocabulary: int,
    heldout: Batch,
    retelling: Retelling | None = None,
) -> OpenedTeacher:
    """The teacher of a folder, as `load_teacher` has it, split as the options ask; with a `retelling` it reads the text
    in its own tokens, in rows of many lengths, for which nothing is compiled."""
    if retelling is not None:
        here = here._replace(compiled=False)
    model, kl = load_teacher(config, folder, here, heldout)
    source = LiveTeacher(model, needs, vocabulary) if retelling is None else RetoldTeacher(model, retelling)
    if here.sharding == "both":
        shard_model(source, model, device=here.device, bf16=here.bf16)
    return OpenedTeacher(source, kl)


def load_teacher(config: DistillConfig, folder: Path, here: Here, heldout: Batch) -> tuple[Any, float | None]:
    """The model of a folder, frozen in the run's precision and quantised as the options ask, and what that changed (see
    `OpenedTeacher`).

    Raises:
        InputError, UsageError, CompressError: as `load_checked` and `quantize_teacher`.
    """
    model = load_checked(
        config,
        folder,
        here,
        dtype=torch.bfloat16 if here.bf16 else torch.float32,
        device=torch.device("cpu") if here.sharding == "both" else here.device,
    )
    model.requires_grad_(False)
    kl = None if config.teacher_precision == "auto" else quantize_teacher(model, config, heldout.ids, heldout.labels)
    if here.compiled:
        compile_backbone(model, asked=config.compile is True)
    return model, kl
