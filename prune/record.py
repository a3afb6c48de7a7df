"""What prune.json says, and the result that carries it."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.base.config import to_dict
from compress.base.currency import Inputs
from compress.base.outputs import Output
from compress.base.units import format_bytes
from compress.prune.choose.candidates import RankAfterConfig
from compress.prune.parts import ExpertsConfig, RankingConfig, RepairConfig, StorageConfig

if TYPE_CHECKING:
    from compress.prune.check import CheckResult
    from compress.prune.plan import PrunePlan

RECORD = "prune.json"


def student_output(out: Path) -> Output:
    """The folder of a student, which no other may take the place of."""
    return Output(out, "a student", ours=None, folder=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneResult:
    """A student on disk. `record` is the content of its prune.json."""

    out: Path
    plan: "PrunePlan"
    check: "CheckResult"
    record: dict[str, Any]

    def describe(self) -> str:
        """The result for people, a few lines."""
        lines = [self.plan.describe()]
        if self.check.skipped is not None:
            lines.append(f"not compared with the teacher: {self.check.skipped}")
        else:
            of_cache = self.check.max_abs_difference_cached
            cached = "" if of_cache is None else f", cached within {of_cache:.2g}"
            lines.append(
                f"equals the teacher with dropped layers skipped: logits within {self.check.max_abs_difference:.2g}"
                f"{cached} (largest logit {self.check.max_abs_logit:.3g})"
            )
            if self.check.max_abs_difference_image is not None:
                lines[-1] += f", with an image within {self.check.max_abs_difference_image:.2g}"
            if self.check.teacher_cache_differs:
                lines[-1] += "; with a cache both write other text than without, the student as its teacher's"
        if repaired := self.record["repair"]:
            lines.append(
                f"repaired: loss {repaired['loss_nats_before']:.4f} -> {repaired['loss_nats_after']:.4f} nats a "
                f"token on text that was not fitted (teacher {repaired['loss_nats_teacher']:.4f})"
            )
        if streamed := self.record["streamed"]:
            read, whole = streamed["downloaded_bytes"], streamed["of_bytes"]
            lines.append(f"downloaded   {format_bytes(read)} of the teacher's {format_bytes(whole)}")
        return "\n".join([*lines, f"written to {self.out}"])


def prune_settings(
    keep: str | RankingConfig | RankAfterConfig,
    *,
    check: bool,
    repair: RepairConfig | None = None,
    storage: StorageConfig | None = None,
    experts: ExpertsConfig | None = None,
) -> dict[str, Any]:
    """What was asked of `prune`, for its manifest; which text it reads, `prune_inputs` finds by content.

    Of how weights are stored, only what differs from the default and changes the student's bytes.
    """
    asked: dict[str, Any] = {"keep": keep} if isinstance(keep, str) else to_dict(keep)
    if repair is not None:
        asked |= {"repair": True, **to_dict(repair)}
    if experts is not None:
        asked |= to_dict(experts)
    for place in ("calibration", "data"):
        asked.pop(place, None)
    stored, default = storage or StorageConfig(), StorageConfig()
    for name in ("cast", "max_shard_size"):
        if getattr(stored, name) != getattr(default, name):
            asked[name] = getattr(stored, name)
    return {**asked, "check": check}


def prune_inputs(
    teacher: Callable[[], Any],
    keep: str | RankingConfig | RankAfterConfig,
    repair: RepairConfig | None = None,
    experts: ExpertsConfig | None = None,
) -> Inputs:
    """Fingerprints of what `prune` reads, for its manifest: the teacher, and the text it is measured or repaired on.

    `teacher` finds the teacher's (see `model_fingerprint`).
    """
    inputs: dict[str, Callable[[], Any]] = {"teacher": teacher}
    if not isinstance(keep, str) and keep.reads_text:
        inputs["calibration"] = partial(text_fingerprint_of, keep.calibration, keep.calibration_column)
    if isinstance(keep, RankAfterConfig):
        inputs["data"] = partial(text_fingerprint_of, keep.data)
    if repair is not None:
        inputs["repair"] = partial(text_fingerprint_of, repair.calibration, repair.calibration_column)
    if experts is not None:
        inputs["experts"] = partial(text_fingerprint_of, experts.calibration, experts.calibration_column)
    return inputs


def text_fingerprint_of(source: str | None, column: str = "text") -> dict[str, Any] | None:
    """The fingerprint of a text to measure or repair on; None without one."""
    from compress.prune.choose.calibration import calibration_fingerprint

    return calibration_fingerprint(source, column)
