"""`compress sweep`: every run of a sweep up to its training, then all trainings, then the rest of every run.

    OUT/recipe.yaml        the recipe with its `sweep`, every default in it
    OUT/runs/CASE/         each run as `compress run` makes it, and continues it alone
    OUT/sweep.json, .md, .html

What several runs make alike is made once (see `sharing`). Students that learn from the same rows of one teacher are
trained side by side on one forward pass of it; others one after the other, or in processes of their own.
"""

import contextlib
import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from compress.base.disk import owned
from compress.base.errors import CompressError, UsageError
from compress.base.outputs import require_outputs
from compress.base.processes import count
from compress.base.progress import say
from compress.report.sweep import sweep_outputs, write_sweep
from compress.run.pipeline import begun_run, run_folder
from compress.run.plan import plan_run
from compress.run.preflight import run_output
from compress.run.recipe import Recipe, recipe_output, write_recipe
from compress.sweep.cases import Case, cases_of
from compress.sweep.making import Numbered, grouped, make_steps, train, with_training, without_training, work_of
from compress.sweep.processes import Ends, number_of_processes, spread_over
from compress.sweep.split import spread


def run_sweep(
    recipe: Recipe, out: str | Path | None = None, *, redo: Collection[str] = (), processes: int | None = None
) -> Path:
    """Run a recipe's `sweep` to its page and return its folder (default `runs/NAME`).

    Called again it skips what is done and continues what was cut, as `run_recipe` does with each run; `redo` is as
    there, of all runs. Speed is measured in sweeps over cuts alone: of others all students have one shape. Trainings
    are spread over `processes` (default: one for each GPU, else this one), with the same results.

    Raises:
        UsageError: no `sweep`, one that cannot be, a launcher, more processes than GPUs, or as `run_recipe`.
        InputError: as `run_recipe`.
        InterruptedRun: a signal came; what was done is saved.
        CompressError: a training ended before its last step; all others are finished, and on the page.
    """
    cases, folder = cases_of(recipe), run_folder(recipe, out)
    if count() > 1:
        raise UsageError("compress sweep starts its processes itself: leave the launcher out, and say --processes.")
    number = number_of_processes(processes)
    require_outputs(run_output(folder), recipe_output(folder / "recipe.yaml"), *sweep_outputs(folder))
    with contextlib.ExitStack() as held:
        lock = held.enter_context(owned(folder))
        write_recipe(recipe, folder / "recipe.yaml")
        begun = [held.enter_context(begun_run(for_sweep(case), folder / "runs" / case.folder, redo)) for case in cases]
        runs = dict(enumerate(begun))
        make_steps(cases, runs, {place: without_training(run) for place, run in runs.items()})
        ends = _ends(cases, runs, folder, number, lock)
        failed = {cases[place].name: why for place, why in ends.items() if why is not None}
        made = {place: run for place, run in runs.items() if ends.get(place) is None}
        make_steps(cases, runs, {place: with_training(run) for place, run in made.items()})
        for run in made.values():
            run.finish()
        write_sweep(folder, [(case.name, case.folder, case.changes) for case in cases], failed)
    if failed:
        raise CompressError("\n".join(f"{name}: {why}" for name, why in failed.items()))
    return folder


def _ends(cases: Sequence[Case], runs: Numbered, folder: Path, processes: int, lock: int) -> Ends:
    """Train what is not trained yet, here or in several processes; those evaluate their students too."""
    left = [place for place, run in runs.items() if any(step.state()[0] != "done" for step in with_training(run))]
    shares = _shares(cases, left, processes)
    ends: Ends = {}
    if len(shares) > 1:
        say(f"-- {len(shares)} processes")
        ends = spread_over(folder, shares, lock)
    else:
        for found in train(cases, {place: runs[place] for place in left}):
            ends |= found
    for place, why in ends.items():
        if why is not None:
            say(f"{cases[place].name}: {why}")
    return ends


def _shares(cases: Sequence[Case], left: Sequence[int], processes: int) -> list[list[int]]:
    """Of the runs that are `left` those that each process takes."""
    return spread(grouped(cases, left), [work_of(case) for case in cases], processes)


def for_sweep(case: Case) -> Recipe:
    """Its recipe, without what is measured of all students alike."""
    cuts = any(key.split(".")[0] in ("prune", "student", "target", "teacher", "trim") for key in case.changes)
    return case.recipe if cuts else dataclasses.replace(case.recipe, eval=case.recipe.eval.without_speed())


def plan_sweep(
    recipe: Recipe, out: str | Path | None = None, *, flops_per_s: float, processes: int | None = None
) -> dict[str, Any]:
    """`compress sweep --dry-run`: `cases` (name, folder, where its training stands, hours of it alone, `group`: runs of
    one share the teacher's forward pass, memory permitting, and `process`, the one that makes it if something is left),
    the number of `processes` and the sum of their `hours`. Nothing is written.

    Raises:
        UsageError: as `run_sweep`, with all that would refuse a run.
    """
    cases, folder, number = cases_of(recipe), run_folder(recipe, out), number_of_processes(processes)
    rows: list[dict[str, Any]] = []
    left: list[int] = []
    for place, case in enumerate(cases):
        plan, outlook = plan_run(for_sweep(case), folder / "runs" / case.folder, flops_per_s=flops_per_s)
        outlook.refuse()
        hours = None if plan is None or not plan.counted else plan.distill.hours(flops_per_s)
        state = outlook.standing["distill"]
        if any(standing != "done" for standing in outlook.standing.values()):
            left.append(place)
        rows.append({"name": case.name, "folder": case.folder, "state": state, "hours": hours, "process": None})
    for name, group in enumerate(grouped(cases, range(len(cases))), 1):
        for place in group:
            rows[place]["group"] = name
    shares = _shares(cases, left, number)
    for name, share in enumerate(shares, 1):
        for place in share:
            rows[place]["process"] = name
    known = [row["hours"] for row in rows if row["hours"] is not None]
    total = sum(known) if len(known) == len(rows) else None
    return {"cases": rows, "processes": len(shares), "hours": total}


def describe(plan: dict[str, Any]) -> str:
    """A plan for people."""
    spread_out = plan["processes"] > 1
    lines = [
        f"{row['name']}: {row['state']}, group {row['group']}"
        + (f", process {row['process']}" if spread_out and row["process"] else "")
        + ("" if row["hours"] is None else f", {row['hours']:.2g} h alone")
        for row in plan["cases"]
    ]
    count_of = len({row["group"] for row in plan["cases"]})
    total = "" if plan["hours"] is None else f", at most {plan['hours']:.2g} h"
    groups = f"{count_of} group{'s' if count_of > 1 else ''}"
    over = f", spread over {plan['processes']} processes" if spread_out else ""
    return "\n".join([*lines, f"{len(lines)} runs in {groups}{over}{total}: a group runs the teacher once for all."])
