"""One teacher for several students that are trained side by side on the same rows."""

import torch

from compress.distill.objective.signals import Signals
from compress.distill.rows.batch import MicroBatch
from compress.distill.teachers.source import TeacherSource


class SharedTeacher:
    """Asks a source about each micro-batch once, and tells all students what it said; a `TeacherSource`.

    What it said is held, on the device, until `forget`. It is made so that it may be kept for a backward pass.
    """

    def __init__(self, source: TeacherSource) -> None:
        self.source = source
        self._said: dict[bytes, Signals] = {}

    def ahead(self, batch: MicroBatch) -> None:
        """As of the source."""
        self.source.ahead(batch)

    def __call__(self, batch: MicroBatch) -> Signals:
        """What the source says, or has said, of these rows."""
        key = batch.row_ids.tobytes()
        if key not in self._said:
            with torch.inference_mode(False), torch.no_grad():
                self._said[key] = self.source(batch)
        return self._said[key]

    def forget(self) -> None:
        """Let go of all that was said: the students go on to the next step."""
        self._said.clear()
