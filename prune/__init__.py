"""Step 1: a teacher checkpoint in, a student checkpoint with fewer layers out.

`config` (of `parts`) says what can be asked; `step` does it: `plan` derives the student's figures and config (rules/
says how each field of a config changes, choose/ which layers stay), `under_way` copies its weights, `student` writes
the rest, has it compared with its teacher (`check`), repaired if that was asked for (`repair`), and recorded
(`record`).

Only configs are imported at once: the rest is when it is first asked for, so that options are read without NumPy, and
the copy of the weights can start before torch is there.
"""

from typing import TYPE_CHECKING, Any

from compress.prune.choose.candidates import Chosen, RankAfterConfig
from compress.prune.config import PruneConfig
from compress.prune.growth.config import GrowConfig
from compress.prune.parts import WITHOUT_TEXT, ExpertsConfig, RankingConfig, RepairConfig, StorageConfig
from compress.prune.trimming.config import TrimConfig

if TYPE_CHECKING:
    from compress.prune.choose.ranking import Ranking
    from compress.prune.growth.preflight import check_grow, check_growth
    from compress.prune.growth.record import GrowResult, grow_inputs
    from compress.prune.growth.step import grow, grow_family
    from compress.prune.plan import PrunePlan, plan_prune
    from compress.prune.preflight import check_prune, check_students, student_facts
    from compress.prune.record import PruneResult, prune_inputs, prune_settings, student_output
    from compress.prune.step import family_folders, prune, prune_family, student_name
    from compress.prune.student import Planned, measure_layers
    from compress.prune.trimming.preflight import check_trim, check_trimming
    from compress.prune.trimming.record import TrimResult, trim_inputs
    from compress.prune.trimming.step import trim

__all__ = [
    "WITHOUT_TEXT",
    "Chosen",
    "ExpertsConfig",
    "GrowConfig",
    "GrowResult",
    "Planned",
    "PruneConfig",
    "PrunePlan",
    "PruneResult",
    "RankAfterConfig",
    "Ranking",
    "RankingConfig",
    "RepairConfig",
    "StorageConfig",
    "TrimConfig",
    "TrimResult",
    "check_grow",
    "check_growth",
    "check_prune",
    "check_students",
    "check_trim",
    "check_trimming",
    "family_folders",
    "grow",
    "grow_family",
    "grow_inputs",
    "measure_layers",
    "plan_prune",
    "prune",
    "prune_family",
    "prune_inputs",
    "prune_settings",
    "student_facts",
    "student_name",
    "student_output",
    "trim",
    "trim_inputs",
]

_HOMES = {
    "GrowResult": "growth.record",
    "Planned": "student",
    "PrunePlan": "plan",
    "PruneResult": "record",
    "Ranking": "choose.ranking",
    "TrimResult": "trimming.record",
    "check_grow": "growth.preflight",
    "check_growth": "growth.preflight",
    "check_prune": "preflight",
    "check_students": "preflight",
    "check_trim": "trimming.preflight",
    "check_trimming": "trimming.preflight",
    "family_folders": "step",
    "grow": "growth.step",
    "grow_family": "growth.step",
    "grow_inputs": "growth.record",
    "measure_layers": "student",
    "plan_prune": "plan",
    "prune": "step",
    "prune_family": "step",
    "prune_inputs": "record",
    "prune_settings": "record",
    "student_facts": "preflight",
    "student_name": "step",
    "student_output": "record",
    "trim": "trimming.step",
    "trim_inputs": "trimming.record",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
