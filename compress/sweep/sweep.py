"""`compress sweep`: every run of a sweep up to its training, then all trainings, then the rest of every run.

    OUT/recipe.yaml        the recipe with its `sweep`, every default in it
    OUT/runs/CASE/         each run as `compress run` makes it, and continues it alone
    OUT/sweep.json, .md, .html

What several runs make alike is made once (see `sharing`). Students that learn from the same rows of one teacher are
trained side by side on one forward pass of it; others one after the other.
"""

import contextlib
import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from compress.base.config import to_dict
from compress.base.disk import owned, sha256_json
from compress.base.errors import CompressError, UsageError
from compress.base.outputs import require_outputs
from compress.base.processes import count
from compress.base.progress import say
from compress.distill import DistillResult
from compress.distill.asked import Training
from compress.distill.distillation import distill_together, groups_together
from compress.distill.together import alike
from compress.report.sweep import sweep_outputs, write_sweep
from compress.run.pipeline import BegunRun, begun_run, run_folder
from compress.run.plan import plan_run
from compress.run.preflight import run_output
from compress.run.recipe import Recipe, recipe_output, write_recipe
from compress.run.steps import Step
from compress.sweep.cases import Case, cases_of
from compress.sweep.sharing import take_over


def run_sweep(recipe: Recipe, out: str | Path | None = None, *, redo: Collection[str] = ()) -> Path:
    """Run a recipe's `sweep` to its page and return its folder (default `runs/NAME`).

    Called again it skips what is done and continues what was cut, as `run_recipe` does with each run; `redo` is as
    there, of all runs. Speed is measured in sweeps over cuts alone: of others all students have one shape.

    Raises:
        UsageError: no `sweep`, one that cannot be, several processes, or as `run_recipe`.
        InputError: as `run_recipe`.
        InterruptedRun: a signal came; what was done is saved.
        CompressError: a training ended before its last step; all others are finished, and on the page.
    """
    cases, folder = cases_of(recipe), run_folder(recipe, out)
    if count() > 1:
        raise UsageError("compress sweep trains in one process: start it without a launcher.")
    require_outputs(run_output(folder), recipe_output(folder / "recipe.yaml"), *sweep_outputs(folder))
    with contextlib.ExitStack() as held:
        held.enter_context(owned(folder))
        write_recipe(recipe, folder / "recipe.yaml")
        runs = [held.enter_context(begun_run(_for_sweep(case), folder / "runs" / case.folder, redo)) for case in cases]
        failed = _make(cases, runs)
        write_sweep(folder, [(case.name, case.folder, case.changes) for case in cases], failed)
    if failed:
        raise CompressError("\n".join(f"{name}: {why}" for name, why in failed.items()))
    return folder


def _for_sweep(case: Case) -> Recipe:
    """Its recipe, without what is measured of all students alike."""
    cuts = any(key.split(".")[0] in ("prune", "student", "teacher") for key in case.changes)
    return case.recipe if cuts else dataclasses.replace(case.recipe, eval=case.recipe.eval.without_speed())


def _make(cases: Sequence[Case], runs: Sequence[BegunRun]) -> dict[str, str]:
    """Make every run; what ended a training, by the case's name."""
    for number, run in enumerate(runs):
        say(f"-- {cases[number].name}")
        for step in _before(run):
            _take_or_make(run, step, runs[:number])
    failed = _train(cases, runs)
    for number, run in enumerate(runs):
        if cases[number].name not in failed:
            say(f"-- {cases[number].name}")
            for step in run.steps[len(_before(run)) :]:
                _take_or_make(run, step, runs[:number])
            run.finish()
    return failed


def _before(run: BegunRun) -> list[Step]:
    """The steps before the student's training."""
    names = [step.name for step in run.steps]
    return run.steps[: names.index("distill")]


def _take_or_make(run: BegunRun, step: Step, earlier: Sequence[BegunRun]) -> None:
    others = [other for each in earlier for other in each.steps if other.name == step.name]
    if take_over(step, others):
        say(f"{step.name}: as of the run before.")
    else:
        run.make(step)


def _train(cases: Sequence[Case], runs: Sequence[BegunRun]) -> dict[str, str]:
    """Train what is not trained yet, in groups."""
    left, failed = dict[int, Training](), dict[str, str]()
    for number, run in enumerate(runs):
        step = run.steps[len(_before(run))]
        assert step.training is not None
        if step.state()[0] != "done":
            left[number] = step.training()
    numbers = list(left)
    for group in groups_together(list(left.values())):
        members = [numbers[place] for place in group]
        say(f"distill: {'; '.join(cases[number].name for number in members)}")
        for number, result in zip(members, distill_together([left[number] for number in members]), strict=True):
            if not isinstance(result, DistillResult):
                failed[cases[number].name] = str(result)
                say(f"{cases[number].name}: {result}")
    return failed


def plan_sweep(recipe: Recipe, out: str | Path | None = None, *, flops_per_s: float) -> dict[str, Any]:
    """`compress sweep --dry-run`: `cases` (name, folder, where its training stands, hours of it alone, `group`: runs of
    one share the teacher's forward pass, memory permitting) and the sum of their `hours`. Nothing is written.

    Raises:
        UsageError: as `run_sweep`, with all that would refuse a run.
    """
    cases, folder = cases_of(recipe), run_folder(recipe, out)
    rows: list[dict[str, Any]] = []
    for case in cases:
        plan, outlook = plan_run(_for_sweep(case), folder / "runs" / case.folder, flops_per_s=flops_per_s)
        outlook.refuse()
        hours = None if plan is None or not plan.counted else plan.distill.hours(flops_per_s)
        state = outlook.standing["distill"]
        rows.append({"name": case.name, "folder": case.folder, "state": state, "hours": hours})
    shared = [_source_of(case.recipe) for case in cases]
    groups = alike([(case.recipe.distill, same) for case, same in zip(cases, shared, strict=True)])
    for name, group in enumerate(groups, 1):
        for number in group:
            rows[number]["group"] = name
    known = [row["hours"] for row in rows if row["hours"] is not None]
    return {"cases": rows, "hours": sum(known) if len(known) == len(rows) else None}


def _source_of(recipe: Recipe) -> str:
    """What says which teacher reads which text."""
    return sha256_json([each and to_dict(each) for each in (recipe.teacher, recipe.trim, recipe.data)])


def describe(plan: dict[str, Any]) -> str:
    """A plan for people."""
    lines = [
        f"{row['name']}: {row['state']}, group {row['group']}"
        + ("" if row["hours"] is None else f", {row['hours']:.2g} h alone")
        for row in plan["cases"]
    ]
    count_of = len({row["group"] for row in plan["cases"]})
    total = "" if plan["hours"] is None else f", at most {plan['hours']:.2g} h"
    groups = f"{count_of} group{'s' if count_of > 1 else ''}"
    return "\n".join([*lines, f"{len(lines)} runs in {groups}{total}: a group runs the teacher once for all."])
