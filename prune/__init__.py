"""Step 1: a teacher checkpoint in, a student checkpoint with fewer layers out.

What needs torch is imported when it is first asked for, so that the copy of the weights can start before.
"""

from typing import TYPE_CHECKING, Any

from compress.prune.config import WITHOUT_TEXT, PruneConfig, PruneOptions, RankingConfig, RepairConfig, StorageConfig
from compress.prune.record import PruneResult, prune_inputs, prune_settings
from compress.prune.step import prune, prune_family, student_name

if TYPE_CHECKING:
    from compress.prune.plan import PrunePlan, plan_prune
    from compress.prune.ranking import Ranking

__all__ = [
    "WITHOUT_TEXT",
    "PruneConfig",
    "PruneOptions",
    "PrunePlan",
    "PruneResult",
    "Ranking",
    "RankingConfig",
    "RepairConfig",
    "StorageConfig",
    "plan_prune",
    "prune",
    "prune_family",
    "prune_inputs",
    "prune_settings",
    "student_name",
]


def __getattr__(name: str) -> Any:
    if name in ("PrunePlan", "plan_prune"):
        from compress.prune import plan

        return getattr(plan, name)
    if name == "Ranking":
        from compress.prune.ranking import Ranking

        return Ranking
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
