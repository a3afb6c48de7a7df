"""`compress run --dry-run`: what a recipe will do and cost, from config.json files alone."""

import copy
import dataclasses
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from compress.base.errors import Faults, UsageError
from compress.base.machine import total_memory
from compress.base.units import format_bytes, format_count
from compress.data import TextFacts
from compress.distill import DistillConfig, DistillPlan, ScoringPlan, plan_distill, plan_scoring
from compress.distill.teachers.planning import CachePlan, plan_cache
from compress.model.cuts import kept_layers
from compress.model.parts import count_parameters, empty_model
from compress.model.remote_code import trusting
from compress.prune import PrunePlan, RankAfterConfig, check_students, family_folders
from compress.run.chain_checks import StageFacts
from compress.run.earlier import expected
from compress.run.layout import Layout
from compress.run.options import PruneOptions
from compress.run.pipeline import Outlook, look_ahead, resolve_paths, run_folder
from compress.run.preflight import Known, fit_recipe
from compress.run.rank_after import plan_ranked
from compress.run.recipe import Recipe
from compress.run.target import target_text

_HEAL = "distill"
_REMEDY = "does not fit; lower distill.micro_batch_rows or set distill.gradient_checkpointing (same result, slower)"


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """One cut, or that of a stage before, and its healing; `prune` is None where the student is no cut."""

    prune: PrunePlan | None
    distill: DistillPlan


@dataclasses.dataclass(frozen=True)
class RecipePlan:
    """A recipe's cost."""

    name: str
    prune: PrunePlan | None
    """None where the student is no cut."""
    parameters: tuple[int, int]
    """Of the student, and of its teacher."""
    teacher_training: DistillPlan | None
    """None where the teacher is used as it is."""
    distill: DistillPlan
    available_bytes: dict[str, int]
    """Memory of each device of this machine."""
    flops_per_s: float
    tasks: tuple[str, ...]
    counted: bool = True
    """Whether it is known how much text there is; else `distill` is a plan of one step."""
    cache: CachePlan | None = None
    """None where the teacher is run, or it is not known how much text there is."""
    ranking_tokens: int = 0
    """Tokens that the candidates of a ranking are healed on, all together, if no two name the same cut."""
    sources: dict[str, int | None] = dataclasses.field(default_factory=dict)
    """Of a blend: the training tokens of each source by its name; None for all that it has."""
    scoring: ScoringPlan | None = None
    """None where `distill` takes all the text in a random order."""
    taught_by: str | None = None
    """Several teachers and their shares, in words; None of one."""
    trim: str | None = None
    """How much of the teacher's vocabulary is to stay, in words; None where it stays whole."""
    branches: dict[str, DistillPlan] = dataclasses.field(default_factory=dict)
    """Trainings of branches by the names of their sources, where they are merged; `distill` is the first of them."""
    stages: tuple[StagePlan, ...] = ()
    """Of a chain, those before the last, whose own are `prune` and `distill`."""
    grown: tuple[int, ...] = ()
    """Layers of the models that are grown from the healed student."""
    exported: tuple[str, ...] = ()
    """Formats that the healed student is exported in."""
    forecasts: tuple[str, ...] = ()
    """What runs beside this one, of the same teacher and cut, lead one to expect of its held-out measure."""
    target: str | None = None
    """What is to be reached, in words."""

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON data."""
        data = dataclasses.asdict(self)
        if not self.counted:
            data["distill"] |= dict.fromkeys(("steps", "tokens", "flops"))
        return {**data, "hours": self._hours()}

    def _hours(self) -> float | None:
        """Of all that is trained, cached and scored; None where that is not counted yet."""
        scoring = 0.0 if self.scoring is None else self.scoring.flops
        if scoring is None or not self.counted:
            return None
        trainings = sum(plan.hours(self.flops_per_s) for plan in self._trainings().values())
        cache = 0.0 if self.cache is None else self.cache.hours(self.flops_per_s)
        return trainings + self._ranking_hours() + cache + scoring / self.flops_per_s / 3600

    def _given_student(self) -> str:
        student, teacher = self.parameters
        return f"a student of its own: {student:,} parameters, the teacher has {teacher:,}"

    def _ranking_hours(self) -> float:
        return self.ranking_tokens * self.distill.flops_per_token / self.flops_per_s / 3600

    def _trainings(self) -> dict[str, DistillPlan]:
        earlier = {f"{_HEAL}-{number}": stage.distill for number, stage in enumerate(self.stages, start=1)}
        last = {f"{_HEAL} {name}": plan for name, plan in self.branches.items()} or {_HEAL: self.distill}
        all_ = {"train the teacher": self.teacher_training, **earlier, **last}
        return {name: plan for name, plan in all_.items() if plan is not None}

    def _extent(self, name: str, plan: DistillPlan) -> str:
        if name.startswith(_HEAL) and not self.counted:
            return (
                f"all the text, {format_count(plan.flops_per_token)} FLOPs a token; how much there is is counted when "
                "it is prepared (give distill.tokens to plan with)"
            )
        return (
            f"{format_count(plan.tokens)} tokens in {plan.steps} steps, {format_count(plan.flops_per_token)} FLOPs a "
            f"token, {plan.flops:.3g} FLOPs, {plan.hours(self.flops_per_s):.2g} h at "
            f"{format_count(self.flops_per_s)} FLOP/s"
        )

    def _scoring(self, plan: ScoringPlan) -> str:
        each = f"{format_count(plan.flops_per_token)} FLOPs a token"
        if plan.tokens is None or plan.flops is None:
            return f"  before it, all the text is scored once: {each}"
        return (
            f"  before it, all the text is scored once: {format_count(plan.tokens)} tokens, {each}, {plan.flops:.3g} "
            f"FLOPs ({plan.flops / self.distill.flops:.1%} of the training's), "
            f"{plan.flops / self.flops_per_s / 3600:.2g} h"
        )

    def describe(self) -> str:
        """The plan for people."""
        cuts = [plan.describe() for plan in (*(stage.prune for stage in self.stages), self.prune) if plan is not None]
        target = [] if self.target is None else [f"target: {self.target}"]
        trimmed = [] if self.trim is None else [f"trim: {self.trim}"]
        lines = [self.name, *target, *trimmed, *(dict.fromkeys(cuts) or [self._given_student()])]
        if self.ranking_tokens:
            tokens, hours = format_count(self.ranking_tokens), self._ranking_hours()
            lines.append(f"rank candidate cuts: at most {tokens} tokens, {hours:.2g} h")
        if self.sources:
            parts = [f"{name} {format_count(count) if count else '(all)'}" for name, count in self.sources.items()]
            lines.append(f"blend, in tokens: {', '.join(parts)}")
        if self.cache is not None:
            lines.append(f"cache the teacher: {self.cache.describe(self.distill.tokens, self.flops_per_s)}")
        if self.taught_by is not None:
            lines.append(f"taught by {self.taught_by}")
        for name, plan in self._trainings().items():
            lines += [
                f"{name}: {self._extent(name, plan)}",
                f"  trained: {plan.trained_text()} parameters",
                f"  memory: {plan.memory_text()}; {format_bytes(plan.total_bytes)} in all",
            ]
            if plan.rollouts is not None:
                lines.append(f"  {plan.rollouts.describe()}")
            for device, available in self.available_bytes.items():
                fits = "fits" if plan.total_bytes < 0.9 * available else _REMEDY
                lines.append(f"  {device} has {format_bytes(available)}: {fits}")
        if self.scoring is not None:
            lines.append(self._scoring(self.scoring))
        lines += self.forecasts
        if self.grown:
            lines.append(f"grow: models of {', '.join(map(str, self.grown))} layers")
        if self.exported:
            lines.append(f"export: {', '.join(self.exported)}")
        lines.append(f"eval: {', '.join(self.tasks) or 'no benchmarks'}")
        return "\n".join(lines)


def plan_run(
    recipe: Recipe, out: str | Path | None, redo: Collection[str] = (), *, flops_per_s: float
) -> tuple[RecipePlan | None, Outlook]:
    """`compress run --dry-run`: what a recipe will do and cost, where a run of it stands, and what would refuse it.

    Nothing is written. See `plan_recipe` and `compress.run.pipeline.look_ahead`.
    """
    with trusting(recipe.teacher.trust_remote_code):
        run = run_folder(recipe, out)
        resolved = fit_recipe(resolve_paths(recipe, run), Layout(run), measure=False)
        outlook = look_ahead(resolved, Layout(run), redo, download=False)
        try:
            plan = plan_recipe(resolved, outlook.known, flops_per_s=flops_per_s)
            if plan is not None and plan.counted and recipe.merge is None:
                plan = dataclasses.replace(plan, forecasts=tuple(expected(recipe, run, plan.distill.tokens)))
            if plan is not None and resolved.target is not None:
                words = target_text(resolved.target, timed=Layout(run).timing.is_file())
                plan = dataclasses.replace(plan, target=words)
            return plan, outlook
        except UsageError:
            if not outlook.faults.found:
                raise
            return None, outlook  # what cannot be planned is among what refuses the run


def plan_recipe(recipe: Recipe, known: Known, *, flops_per_s: float) -> RecipePlan | None:
    """Plan a recipe from what is known of it before it begins; None where that is too little.

    `flops_per_s` is the rate that training is expected to reach, for the estimate of hours.
    """
    teacher, last, choice = known.teacher, known.stages[-1], recipe.prune.choice
    student, cut = last.student, last.cut
    others, mixture = [other.config for other in known.others], recipe.distill.mixture
    cached = recipe.teacher.cache is not None
    texts = [known.text] if recipe.merge is None else known.text.parts
    plans = [_plan_stage(facts, known.text, others, cached=cached) for facts in known.stages[:-1]]
    healings = [_plan_stage(last, text, others, cached=cached) for text in texts]
    if teacher is None or student is None or None in plans or None in healings:
        return None
    healing, *_ = healed = list(filter(None, healings))
    ranked = 0
    if cut is not None and isinstance(choice, RankAfterConfig):
        ranked = choice.rank_after * len(choice.proposals(cut.layer_types))
    training = recipe.teacher.training
    return RecipePlan(
        name=recipe.name,
        prune=None if cut is None else cut.plan,
        parameters=(healing.distill.parameters, count_parameters(empty_model(copy.deepcopy(teacher.config)))),
        teacher_training=None if training is None else _plan(training, known.text, teacher.config, None, None),
        distill=healing.distill,
        available_bytes=total_memory(),
        flops_per_s=flops_per_s,
        tasks=tuple(recipe.eval.tasks),
        counted=all(_rows(facts.stage.distill, text) is not None for facts in known.stages for text in texts),
        cache=_cache(recipe, known.text, teacher.config),
        ranking_tokens=ranked,
        grown=() if recipe.grow is None else tuple(sorted(recipe.grow.layers)),
        exported=() if recipe.export is None else recipe.export.format,
        sources={name: part.tokens for name, part in zip(recipe.data.names, recipe.data.parts(), strict=False)},
        scoring=plan_scoring(
            recipe.distill,
            student=student.config,
            teacher=teacher.config,
            num_rows=known.text.num_rows,
            seq_len=known.text.seq_len,
        ),
        taught_by=None if mixture is None else mixture.describe(teacher.name, known.text.sources),
        trim=_trim(recipe),
        branches={name: plan.distill for name, plan in zip(known.text.sources, healed, strict=True)}
        if recipe.merge is not None
        else {},
        stages=tuple(filter(None, plans)),
    )


def _trim(recipe: Recipe) -> str | None:
    if recipe.trim is None:
        return None
    ids = "the ids that the text uses" if recipe.trim.keep_tokens is None else f"{recipe.trim.keep_tokens:,} ids"
    return f"{ids} stay; figures of a teacher that is not trimmed yet are of its whole vocabulary"


def _plan_stage(facts: StageFacts, text: TextFacts, others: Sequence[Any], *, cached: bool) -> StagePlan | None:
    """A cut and its healing, as far as they are known; with a cache, the run's own teacher is read from that."""
    stage, student, teacher = facts.stage, facts.student, facts.teacher
    if student is None or teacher is None:
        return None
    kept, cached = kept_layers(student.cuts, teacher.config), cached and stage.teacher == "original"
    healing = _plan(stage.distill, text, student.config, teacher.config, kept, cached=cached, others=others)
    return StagePlan(None if facts.cut is None else facts.cut.plan, healing)


def _rows(training: DistillConfig, text: TextFacts) -> int | None:
    """Training rows that there will be, as far as anyone says."""
    if text.num_rows is None and training.tokens is not None:
        return math.ceil(training.tokens / text.seq_len)
    return text.num_rows


def _cache(recipe: Recipe, text: TextFacts, teacher: Any) -> CachePlan | None:
    """The cache of the teacher on all of the text, as far as anyone says how much there is."""
    config, rows = recipe.teacher.cache, _rows(recipe.distill, text)
    if config is None or rows is None:
        return None
    size = {"num_rows": rows, "num_heldout": text.num_heldout, "seq_len": text.seq_len}
    return plan_cache(config, teacher, **size, bf16=recipe.distill.precision != "fp32")


def _plan(
    training: DistillConfig,
    text: TextFacts,
    student: Any,
    teacher: Any | None,
    kept: tuple[int, ...] | None,
    *,
    cached: bool = False,
    others: Sequence[Any] = (),
) -> DistillPlan:
    """A training on what is selected of the text or, where its rows are not counted yet, on what is asked for; on one
    step where nobody says how much there is."""
    if text.num_rows is None:
        training = dataclasses.replace(training, select=None)
    rows = _rows(training, text) or max(1, training.batch_tokens // text.seq_len)
    models = {"student": student, "teacher": teacher, "others": others}
    return plan_distill(training, **models, num_rows=rows, seq_len=text.seq_len, kept=kept, cached=cached)


def plan_students(family: Sequence[PruneOptions], *, teacher: str, out: Path) -> tuple[list[PrunePlan], Faults]:
    """`compress prune --dry-run`: the plans of the students that there are, and all that would refuse them."""
    first, choices = family[0].prune, [each.prune.choice for each in family]
    if isinstance(choices[0], RankAfterConfig):
        plan, faults = plan_ranked(family[0], teacher=teacher, out=out)
        return [] if plan is None else [plan], faults
    faults = Faults()
    outs = faults.of(lambda: family_folders(out, list(map(str, choices)))) if len(choices) > 1 else [out]
    return check_students(teacher, outs or [], choices, faults, **first.how), faults
