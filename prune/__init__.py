"""Step 1: a teacher checkpoint in, a student checkpoint with fewer layers out."""

from compress.prune.candidates import Chosen, RankAfterConfig
from compress.prune.plan import PrunePlan, plan_prune
from compress.prune.ranking import WITHOUT_TEXT, Ranking, RankingConfig
from compress.prune.repair import RepairConfig
from compress.prune.step import (
    PruneConfig,
    PruneResult,
    measure_layers,
    prune,
    prune_inputs,
    prune_settings,
)

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
    "measure_layers",
    "plan_prune",
    "prune",
    "prune_inputs",
    "prune_settings",
]
