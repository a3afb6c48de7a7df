"""What grow.json says, and the result that carries it."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.base.currency import Inputs
from compress.base.outputs import Output
from compress.base.units import format_count
from compress.prune.growth.config import GrowConfig
from compress.prune.record import text_fingerprint_of

if TYPE_CHECKING:
    from compress.prune.growth.plan import Growth

RECORD = "grow.json"


def grown_output(out: Path) -> Output:
    """The folder of a grown model, or of several, which no other may take the place of."""
    return Output(out, "a grown model", ours=None, folder=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrownModel:
    """A grown model on disk. `record` is the content of its grow.json."""

    out: Path
    record: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrowResult:
    """All models of a call, the smallest first. `record` is the content of OUT/grow.json."""

    out: Path
    growth: "Growth"
    models: Sequence[GrownModel]
    record: dict[str, Any]

    def describe(self) -> str:
        """The result for people, a few lines."""
        growth, steps = self.growth, self.record["order"].get("steps", ())
        head = f"{growth.student} has {len(growth.kept)} of the {growth.num_layers} layers of {growth.name}"
        if steps:
            head += f", KL {self.record['order']['kl_nats']:.4f} nats from it on calibration text"
        lines = [head]
        for model in self.models:
            record = model.record
            line = f"{len(record['kept_layers']):>4} layers   {format_count(record['params'])} parameters"
            if steps:
                line += f"   KL {steps[len(record['put_back']) - 1]['kl_nats']:.4f}"
            lines.append(f"{line}   put back {', '.join(map(str, record['put_back']))}")
        skipped = self.models[0].record["check"]["skipped"]
        if skipped is not None:
            lines.append(f"not compared with the teacher and student together: {skipped}")
        return "\n".join([*lines, f"written to {self.out}"])


def grow_inputs(student: Callable[[], Any], teacher: Callable[[], Any], config: GrowConfig) -> Inputs:
    """Fingerprints of what `grow` reads, for its manifest; the two callables find the models'."""
    inputs: dict[str, Callable[[], Any]] = {"student": student, "teacher": teacher}
    if config.reads_text:
        inputs["calibration"] = lambda: text_fingerprint_of(config.calibration, config.calibration_column)
    return inputs
