"""Several teachers as one source: each is run on the micro-batches in which it counts something."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compress.base.currency import Inputs
from compress.base.disk import sha256_json
from compress.distill.objective.divergences import sum_dtype
from compress.distill.objective.mixture import Mixture, Voice
from compress.distill.objective.signals import Signals
from compress.distill.rows.batch import MicroBatch
from compress.distill.students.sharding import is_sharded
from compress.distill.teachers.config import MixtureConfig
from compress.distill.teachers.source import TeacherSource
from compress.model.files import model_fingerprint


class SeveralTeachers(nn.Module):
    """The teachers of a mixture in its order; a `TeacherSource`, and a module whose parts may be split over processes.

    Outputs of blocks are the first teacher's, which is run for them where it counts nothing, too.
    """

    def __init__(self, config: MixtureConfig, teachers: Sequence[TeacherSource], *, blocks: bool) -> None:
        super().__init__()
        self._config, self._teachers = config, tuple(teachers)
        self.models = nn.ModuleList(teacher for teacher in teachers if isinstance(teacher, nn.Module))
        self._blocks = blocks
        # weights that are split are gathered by all processes together, whatever rows each of them has
        self._always = any(map(is_sharded, self.models))

    def ahead(self, batch: MicroBatch) -> None:
        """Tells each."""
        for teacher in self._teachers:
            teacher.ahead(batch)

    def forward(self, batch: MicroBatch) -> Signals:
        """What all say together; where one alone counts, its signals as if there were no others."""
        shares = row_shares(self._config, batch)
        heard = [number for number, share in enumerate(shares) if share.any()]
        first = [0] if self._blocks else []
        run = range(len(shares)) if self._always else sorted({*first, *heard})
        signals = {number: self._teachers[number](batch) for number in run}
        found = signals[heard[0]]._replace(blocks=signals[0].blocks if 0 in signals else {})
        if len(heard) == 1:
            return found
        device = found.hidden.device
        voices = []
        for number in heard:
            weights = torch.from_numpy(np.repeat(shares[number], batch.row_lengths)).to(device, sum_dtype(device))
            voices.append(Voice(signals[number].hidden, signals[number].head, weights))
        return found._replace(mixture=Mixture(tuple(voices), self._config.of))


def row_shares(config: MixtureConfig, batch: MicroBatch) -> NDArray[np.float64]:
    """[teachers, B] what each teacher counts in each row, 1 in all."""
    sources = batch.sources or (None,) * len(batch.row_lengths)
    return np.array([config.shares(source) for source in sources], np.float64).T


def role_of(number: int) -> str:
    """What the fingerprint of a teacher is called among a training's inputs: the first beside the run's own is 2."""
    return f"teacher {number}"


def other_inputs(folders: Sequence[Callable[[], Path]]) -> Inputs:
    """How to find the fingerprints of the teachers beside the first, by role."""

    def fingerprint(folder: Callable[[], Path]) -> str:
        return sha256_json(model_fingerprint(folder()))

    return {role_of(number): functools.partial(fingerprint, folder) for number, folder in enumerate(folders, 2)}
