"""`compress run --dry-run`: what a recipe will do and cost, from config.json files alone."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from compress.base.errors import UsageError
from compress.base.machine import total_memory
from compress.base.units import format_bytes, format_count
from compress.data import DataConfig
from compress.distill import DistillConfig, DistillPlan, plan_distill
from compress.model.files import resolve_model
from compress.model.load import load_config
from compress.model.remote_code import trusting
from compress.prune import PrunePlan, RankAfterConfig
from compress.prune.plan import derive
from compress.run.recipe import Recipe
from compress.run.scratch import scratch_config

_REMEDY = "does not fit; lower distill.micro_batch_rows or set distill.gradient_checkpointing (same result, slower)"


@dataclasses.dataclass(frozen=True)
class RecipePlan:
    """A recipe's cost. `teacher_training` is None unless the teacher is trained from scratch."""

    name: str
    prune: PrunePlan
    teacher_training: DistillPlan | None
    distill: DistillPlan
    available_bytes: dict[str, int]
    """Memory of each device of this machine."""
    flops_per_s: float
    tasks: tuple[str, ...]
    ranking_tokens: int = 0
    """Tokens that the candidates of a ranking are healed on, all together, if no two name the same cut."""

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON data."""
        data = dataclasses.asdict(self)
        data["hours"] = sum(plan.hours(self.flops_per_s) for plan in self._trainings().values()) + self._ranking_hours()
        return data

    def _ranking_hours(self) -> float:
        return self.ranking_tokens * self.distill.flops_per_token / self.flops_per_s / 3600

    def _trainings(self) -> dict[str, DistillPlan]:
        both = {"train the teacher": self.teacher_training, "distill": self.distill}
        return {name: plan for name, plan in both.items() if plan is not None}

    def describe(self) -> str:
        """The plan for people."""
        lines = [f"{self.name}", self.prune.describe()]
        if self.ranking_tokens:
            tokens, hours = format_count(self.ranking_tokens), self._ranking_hours()
            lines.append(f"rank candidate cuts: at most {tokens} tokens, {hours:.2g} h")
        for name, plan in self._trainings().items():
            lines += [
                f"{name}: {format_count(plan.tokens)} tokens in {plan.steps} steps, "
                f"{format_count(plan.flops_per_token)} FLOPs a token, {plan.flops:.3g} FLOPs, "
                f"{plan.hours(self.flops_per_s):.2g} h at {format_count(self.flops_per_s)} FLOP/s",
                f"  memory: {plan.memory_text()}; {format_bytes(plan.total_bytes)} in all",
            ]
            for device, available in self.available_bytes.items():
                fits = "fits" if plan.total_bytes < 0.9 * available else _REMEDY
                lines.append(f"  {device} has {format_bytes(available)}: {fits}")
        lines.append(f"eval: {', '.join(self.tasks) or 'no benchmarks'}")
        return "\n".join(lines)


def plan_recipe(recipe: Recipe, *, flops_per_s: float) -> RecipePlan:
    """Plan a recipe. Nothing is downloaded but a hub teacher's JSON files, and nothing is written.

    Args:
        recipe: the recipe.
        flops_per_s: rate that training is expected to reach, for the estimate of hours.

    Raises:
        UsageError: layers, tokens or memory settings that cannot work.
        InputError: the teacher's config cannot be read or cut.
    """
    with trusting(recipe.teacher.trust_remote_code):
        return _plan_recipe(recipe, flops_per_s)


def _plan_recipe(recipe: Recipe, flops_per_s: float) -> RecipePlan:
    with tempfile.TemporaryDirectory() as temporary:
        if recipe.teacher.scratch is not None:
            folder = Path(temporary)
            scratch_config(recipe.teacher.scratch.architecture).save_pretrained(folder)
        else:
            folder = resolve_model(str(recipe.teacher.model), recipe.teacher.revision, weights=False)
        teacher = load_config(folder)
        cut = derive(recipe.teacher.model or "a teacher trained from scratch", folder, recipe.prune.choice)
    choice = recipe.prune.choice
    ranked = choice.rank_after * len(choice.proposals(cut.layer_types)) if isinstance(choice, RankAfterConfig) else 0
    training = None
    if recipe.teacher.scratch is not None:
        training = _plan(recipe.teacher.scratch.train, recipe.data, teacher, None)
    return RecipePlan(
        name=recipe.name,
        prune=cut.plan,
        teacher_training=training,
        distill=_plan(recipe.distill, recipe.data, cut.student, teacher),
        available_bytes=total_memory(),
        flops_per_s=flops_per_s,
        tasks=tuple(recipe.eval.tasks),
        ranking_tokens=ranked,
    )


def _plan(training: DistillConfig, data: DataConfig, student: Any, teacher: Any | None) -> DistillPlan:
    tokens = training.tokens if data.tokens is None else data.tokens
    if tokens is None:
        raise UsageError(
            "The plan needs to know the number of tokens, and local text is counted only when it is prepared: "
            "give it, e.g. --set distill.tokens=4M."
        )
    return plan_distill(
        training, student=student, teacher=teacher, num_rows=tokens // data.seq_len, seq_len=data.seq_len
    )
