"""Step 1: a teacher checkpoint in, a student checkpoint with fewer layers out."""

from compress.prune.plan import PrunePlan, plan_prune
from compress.prune.step import PruneConfig, PruneResult, prune

__all__ = ["PruneConfig", "PrunePlan", "PruneResult", "plan_prune", "prune"]
