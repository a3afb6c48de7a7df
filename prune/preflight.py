"""What can be said of a cut before anything is copied, measured or prepared for it."""

from typing import TYPE_CHECKING

from compress.base.errors import Faults
from compress.base.machine import find_device
from compress.data import check_text
from compress.model.facts import ModelFacts
from compress.model.load import find_dtype
from compress.model.parts import empty_model
from compress.prune.choose.calibration import require_source
from compress.prune.choose.candidates import RankAfterConfig
from compress.prune.choose.ranking import require_memory
from compress.prune.config import PruneConfig
from compress.prune.parts import WITHOUT_TEXT, CalibrationConfig, RankingConfig
from compress.prune.plan import Derivation, derive
from compress.prune.repair import last_maps, no_map_to_change, require_seams
from compress.prune.student import why_unchecked

if TYPE_CHECKING:
    from compress.prune.plan import PrunePlan


def check_prune(
    asked: PruneConfig, teacher: ModelFacts, faults: Faults, *, own_text: bool = False
) -> Derivation | None:
    """Find what would refuse the cut, and return its plan if there is one.

    `own_text` says that what is measured on text is measured on text that is yet to be made (a run's own).
    """
    choice = asked.choice
    cut = faults.of(lambda: derive(teacher.name, teacher.side, choice))
    if cut is not None:
        plan = cut.plan
        faults.of(lambda: why_unchecked(plan, check=asked.check, streamed=bool(asked.stream)))
        if isinstance(choice, RankAfterConfig):
            faults.of(lambda: choice.proposals(cut.layer_types))
    if reads_text(asked):
        _check_reading(asked, teacher, None if cut is None else cut.plan, faults, own_text)
    if asked.repair and cut is not None and isinstance(choice, str):
        faults.of(lambda: _check_repair(cut))
    return cut


def reads_text(asked: PruneConfig) -> bool:
    """Whether layers are measured, or the cut repaired, on text."""
    choice = asked.choice
    if isinstance(choice, RankAfterConfig):
        return asked.repair or choice.reads_text
    return asked.repair or (isinstance(choice, RankingConfig) and choice.by not in WITHOUT_TEXT)


def _check_reading(
    asked: CalibrationConfig, teacher: ModelFacts, plan: "PrunePlan | None", faults: Faults, own_text: bool
) -> None:
    source = None if own_text else faults.of(lambda: require_source(asked.calibration))
    if source is not None:
        check_text(source, asked.calibration_column, faults)
        faults.of(lambda: teacher.tokenizer)
    device = faults.of(lambda: find_device(asked.device))
    if device is not None and plan is not None:
        dtype = find_dtype(asked.dtype, teacher.side, device)
        faults.of(lambda: require_memory(teacher.name, plan.params_before, dtype, device))


def _check_repair(cut: Derivation) -> None:
    """Refuse a repair that has no seam, or no map to change before one.

    Raises:
        InputError: as `compress.prune.repair.repair`.
    """
    student = empty_model(cut.student)
    for seam in require_seams(cut.plan.kept_layers, cut.plan.num_layers):
        if not last_maps(student, seam.block):
            raise no_map_to_change(student, seam.block)
