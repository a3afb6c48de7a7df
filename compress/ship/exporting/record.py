"""What export.json says, and the result that carries it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compress.base.currency import Inputs
from compress.base.outputs import Output
from compress.base.units import format_bytes

RECORD = "export.json"


def export_output(out: Path) -> Output:
    """The folder of an exported model, or of several, which no other may take the place of."""
    return Output(out, "an exported model", ours=None, folder=True)


def export_inputs(student: Callable[[], Any]) -> Inputs:
    """Fingerprints of what `export` reads, for its manifest; `student` finds the model's."""
    return {"student": student}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportResult:
    """A model on disk. `record` is the content of its export.json."""

    out: Path
    record: dict[str, Any]

    def describe(self) -> str:
        """The result for people, a few lines."""
        record, check = self.record, self.record["check"]
        lines = [
            f"{record['student']} as {record['format']}: {format_bytes(record['bytes'])}, "
            f"{record['bits_per_weight']:.2f} bits a weight ({format_bytes(record['bytes_before'])} before)"
        ]
        if check["skipped"] is None:
            lines.append(
                f"loaded again: weights within {check['weight_error']:.2g} of their norm, logits within "
                f"{check['max_abs_difference']:.2g} of those of the model with these weights (largest logit "
                f"{check['max_abs_logit']:.3g})"
            )
        else:
            lines.append(f"not loaded again: {check['skipped']}")
        return "\n".join([*lines, f"written to {self.out}"])
