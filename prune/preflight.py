"""What can be said of a cut before anything is copied, measured or prepared for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from compress.base.errors import Faults
from compress.base.machine import find_device
from compress.base.outputs import check_outputs
from compress.data import check_text
from compress.model.cuts import Cut
from compress.model.facts import ModelFacts, look_at_model
from compress.model.kinds import require_causal
from compress.model.parts import empty_model
from compress.prune.choose.calibration import require_source
from compress.prune.choose.candidates import RankAfterConfig
from compress.prune.choose.ranking import measuring_dtype, require_memory
from compress.prune.config import How
from compress.prune.parts import CalibrationConfig, ExpertsConfig, RankingConfig, RepairConfig
from compress.prune.plan import Derivation, cast_derivation, derive
from compress.prune.record import student_output
from compress.prune.repair import last_maps, no_map_to_change, require_seams
from compress.prune.student import needs_all, why_unchecked
from compress.weights.hub import streams

if TYPE_CHECKING:
    from compress.prune.plan import PrunePlan

Choice = str | RankingConfig | RankAfterConfig
"""A SPEC, a measure that is to choose, or a choice by healing candidates."""


def check_students(
    teacher: str, outs: Sequence[Path], choices: Sequence[Choice], faults: Faults, **how: Unpack[How]
) -> list["PrunePlan"]:
    """Find what would refuse to cut each of `outs` as the choice beside it says; return the plans that there are."""
    check_outputs([student_output(out) for out in outs], faults)
    needed_by = needs_all(choices, how["repair"], how["experts"])
    faults.of(lambda: streams(teacher, how["storage"].stream, check=how["check"], needed_by=needed_by))
    known = look_at_model(teacher, faults)
    if known is None:
        return []
    cuts = [check_prune(choice, known, faults, **how) for choice in choices]
    return [cast_derivation(cut, how["storage"].cast).plan for cut in cuts if cut is not None]


def check_prune(
    choice: Choice, teacher: ModelFacts, faults: Faults, *, own_text: bool = False, **how: Unpack[How]
) -> Derivation | None:
    """Find what would refuse a cut, and return its plan if there is one.

    `own_text` says that what is measured on text is measured on text that is yet to be made (a run's own).
    """
    cut = faults.of(lambda: derive(teacher.name, teacher.side, choice, how["experts"]))
    for config in reading(choice, how["repair"], how["experts"]):
        parameters = None if cut is None else cut.plan.params_before
        check_reading(config, teacher, parameters, faults, own_text=own_text)
    if cut is None:
        return None
    streamed = bool(how["storage"].stream)
    faults.of(lambda: why_unchecked(cut.plan, check=how["check"], streamed=streamed))
    if isinstance(choice, RankAfterConfig):
        faults.of(lambda: choice.proposals(cut.layer_types))
    if how["repair"] is not None:
        faults.of(lambda: require_causal(teacher.config, teacher.name, "The repair of a cut (prune.repair)"))
        if isinstance(choice, str) and cut.plan.kind == "causal":
            faults.of(lambda: _check_repair(cut))
    return cut


def student_facts(cut: Derivation | None, teacher: ModelFacts | None, cuts: tuple[Cut, ...] = ()) -> ModelFacts | None:
    """What is known of the student of a cut before it is made; `cuts` are those of its teacher in a chain."""
    if cut is None or teacher is None:
        return None
    last = Cut(cut.plan.kept_layers, cut.plan.num_layers)
    return ModelFacts("the student", cut.student, teacher.side, (last, *(last.of(first) for first in cuts[-1:])))


def reading(choice: Choice, *others: RepairConfig | ExpertsConfig | None) -> list[CalibrationConfig]:
    """What of a cut reads text: the measure, the repair, the choice of experts."""
    measured = [] if isinstance(choice, str) or not choice.reads_text else [choice]
    return [*measured, *(other for other in others if other is not None)]


def check_reading(
    config: CalibrationConfig,
    teacher: ModelFacts,
    parameters: int | None,
    faults: Faults,
    *,
    own_text: bool,
    held: str | None = None,
) -> None:
    """Find what would refuse to read text and run models of so many parameters on it, named by `held` or the teacher.

    `own_text` says that the text is yet to be made; without `parameters` memory is not asked.
    """
    source = None if own_text else faults.of(lambda: require_source(config.calibration))
    if source is not None:
        check_text(source, config.calibration_column, faults)
        faults.of(lambda: teacher.tokenizer)
    device = faults.of(lambda: find_device(config.device))
    if device is not None and parameters is not None:
        dtype = measuring_dtype(config, teacher.side, device)
        faults.of(lambda: require_memory(held or teacher.name, parameters, dtype, device))


def _check_repair(cut: Derivation) -> None:
    """Refuse a repair that has no seam, or no map to change before one.

    Raises:
        InputError: as `compress.prune.repair.repair`.
    """
    student = empty_model(cut.student)
    for seam in require_seams(cut.plan.kept_layers, cut.plan.num_layers):
        if not last_maps(student, seam.block):
            raise no_map_to_change(student, seam.block)
