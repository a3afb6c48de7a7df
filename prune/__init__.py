"""Step 1: a teacher checkpoint in, a student checkpoint with fewer layers out."""

from compress.prune.plan import PrunePlan, plan_prune
from compress.prune.ranking import WITHOUT_TEXT, Ranking, RankingConfig
from compress.prune.repair import RepairConfig
from compress.prune.step import PruneConfig, PruneResult, prune, prune_inputs, prune_settings

__all__ = [
    "WITHOUT_TEXT",
    "PruneConfig",
    "PrunePlan",
    "PruneResult",
    "Ranking",
    "RankingConfig",
    "RepairConfig",
    "plan_prune",
    "prune",
    "prune_inputs",
    "prune_settings",
]
