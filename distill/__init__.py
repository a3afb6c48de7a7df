"""Step 2: student, teacher and data in, a healed student out."""

from typing import TYPE_CHECKING, Any

from compress.distill.config import DistillConfig
from compress.distill.teachers.config import CacheConfig

if TYPE_CHECKING:
    from compress.distill.distillation import distill
    from compress.distill.objective.loss import DistillationLoss, distillation_loss
    from compress.distill.plan import DistillPlan, ScoringPlan, plan_distill, plan_scoring
    from compress.distill.publish import DistillResult, begun_otherwise, student_output, training_output

__all__ = [
    "CacheConfig",
    "DistillConfig",
    "DistillPlan",
    "DistillResult",
    "DistillationLoss",
    "ScoringPlan",
    "begun_otherwise",
    "distill",
    "distillation_loss",
    "plan_distill",
    "plan_scoring",
    "student_output",
    "training_output",
]

_HOMES = {
    "DistillPlan": "plan",
    "DistillResult": "publish",
    "DistillationLoss": "objective.loss",
    "ScoringPlan": "plan",
    "begun_otherwise": "publish",
    "distill": "distillation",
    "distillation_loss": "objective.loss",
    "plan_distill": "plan",
    "plan_scoring": "plan",
    "student_output": "publish",
    "training_output": "publish",
}


def __getattr__(name: str) -> Any:
    """Import torch and transformers only for what needs them: a recipe is read without."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
