"""Step 1: a teacher checkpoint in, a student checkpoint with fewer layers out.

What needs torch is imported when it is first asked for, so that the copy of the weights can start before.
"""

from typing import TYPE_CHECKING, Any

from compress.prune.choose.candidates import Chosen, RankAfterConfig
from compress.prune.config import WITHOUT_TEXT, RankingConfig, RepairConfig, StorageConfig
from compress.prune.options import PruneConfig
from compress.prune.record import PruneResult, prune_inputs, prune_settings
from compress.prune.step import prune, prune_family, student_name

if TYPE_CHECKING:
    from compress.prune.choose.ranking import Ranking
    from compress.prune.plan import PrunePlan, plan_prune
    from compress.prune.student import measure_layers

__all__ = [
    "WITHOUT_TEXT",
    "Chosen",
    "PruneConfig",
    "PrunePlan",
    "PruneResult",
    "RankAfterConfig",
    "Ranking",
    "RankingConfig",
    "RepairConfig",
    "StorageConfig",
    "measure_layers",
    "plan_prune",
    "prune",
    "prune_family",
    "prune_inputs",
    "prune_settings",
    "student_name",
]

_HOMES = {"PrunePlan": "plan", "plan_prune": "plan", "Ranking": "choose.ranking", "measure_layers": "student"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
