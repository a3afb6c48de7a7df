"""`compress run`: a recipe's steps in order, each skipped when its result is there and unchanged.

    world (demo only) -> prune -> data -> distill -> eval -> report

A teacher to be trained from scratch needs the data, so there: data -> teacher -> prune -> distill. A given one is cut
first: what is wrong with it shows before hours of preparing text; unless its layers are measured, or the cut
repaired, on that text.

`compress.run` and `compress.verify` alone know the steps, which meet in the run folder. Under a launcher all processes
train and evaluate together; the main one does the rest while others wait.
"""

import contextlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from compress.base.config import build_from, dump_yaml, to_dict
from compress.base.disk import owned, write_text
from compress.base.errors import UsageError
from compress.base.processes import on_main
from compress.base.progress import say
from compress.data import INDEX, options_unlike, prepare
from compress.demo import DEMO
from compress.distill import DistillResult, distill
from compress.distill.resources.start_up import check_start
from compress.model.files import local_model, resolve_model
from compress.model.remote_code import trusting
from compress.report import write_report
from compress.run.evaluations import show_speeds
from compress.run.layout import Layout
from compress.run.recipe import DistillOptions, Recipe, load_recipe
from compress.run.recipe_steps import steps_of
from compress.run.redo import Redo, begin, intended
from compress.run.steps import Step, states


def run_recipe(recipe: Recipe | str | Path, out: str | Path | None = None, *, redo: Collection[str] = ()) -> Path:
    """Run a recipe to its report and return the run folder (default `runs/NAME`).

    Called again, it skips every step whose settings, inputs and outputs are as its manifest says, and continues one
    that was cut. A result that is no longer current is left alone, and the run stops before anything is done, unless
    `redo` names its step (`distill`, `eval`, ...): then it is moved to RUN/old/STEP-DATE and made anew, and so is what
    was made from it.

    Raises:
        UsageError: the recipe is wrong, or a result was made otherwise and `redo` does not name it.
        InputError: a model, text or benchmark that cannot be used.
        InterruptedRun: a signal came; what was done is saved.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    run = run_folder(recipe, out)
    with contextlib.ExitStack() as held:
        held.enter_context(trusting(recipe.teacher.trust_remote_code))
        on_main(lambda: held.enter_context(owned(run)))
        _run(recipe, Layout(run), list(redo))
    return run


def _run(recipe: Recipe, layout: Layout, asked: Sequence[str]) -> None:
    resolved = resolve_paths(recipe, layout.run)
    teacher = on_main(lambda: teacher_folder(resolved, layout))
    steps = steps_of(resolved, layout, lambda: teacher)
    redo = on_main(lambda: _begin(recipe, steps, layout, asked))
    for step in steps:
        if on_main(lambda step=step: _is_left_to_make(step, steps, redo)):  # type: ignore[misc]
            step.make() if step.together else on_main(step.make)
    on_main(lambda: _end(resolved, layout, redo))


def _end(recipe: Recipe, layout: Layout, redo: Redo) -> None:
    if recipe.eval.speed:
        show_speeds(layout)
    write_report(layout.run)
    redo.finish()


def _begin(recipe: Recipe, steps: Sequence[Step], layout: Layout, asked: Sequence[str]) -> Redo:
    redo = begin(steps, layout, asked)
    write_text(layout.recipe, dump_yaml(recipe))
    return redo


def _is_left_to_make(step: Step, steps: Sequence[Step], redo: Redo) -> bool:
    """Whether the step is to be made, once what it left is aside if it follows from what was made anew.

    Raises:
        UsageError: what it left is no longer current, and nobody asked for it.
    """
    state, differing = step.state()
    if state == "changed":
        redo.require(step, differing, steps)
        redo.move([step])
    if state == "done":
        say(f"{step.name}: done, unchanged.")
    return state != "done"


def standing(recipe: Recipe, run: Path, redo: Collection[str] = ()) -> tuple[dict[str, str], UsageError | None]:
    """Where each step of a resolved recipe stands in a run folder, by name, and why the run would stop at once.

    Nothing is written or downloaded. A step whose result `redo` would move aside is `done anew`.
    """
    layout, scratch = Layout(run), recipe.teacher.scratch

    def teacher() -> Path:
        return layout.teacher if scratch else local_model(str(recipe.teacher.model), recipe.teacher.revision)

    steps = steps_of(recipe, layout, teacher)
    found = states(steps)
    try:
        asked = intended(steps, layout, list(redo), found)
    except UsageError as refusal:
        return {name: state for name, (state, _) in found.items()}, refusal
    anew = {step.name for step in steps if step.name in asked.aside and step.name not in asked.moved}
    return {name: "done anew" if name in anew else state for name, (state, _) in found.items()}, None


def run_folder(recipe: Recipe, out: str | Path | None) -> Path:
    """Where a recipe runs: `out`, or runs/NAME."""
    return Path(out) if out is not None else Path("runs") / recipe.name


def resolve_paths(recipe: Recipe, run: Path) -> Recipe:
    """The recipe with `$RUN` replaced by the run folder and `$DEMO` by the folder of `compress.demo`."""

    def resolved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: resolved(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [resolved(item) for item in value]
        if isinstance(value, str):
            return value.replace("$RUN", run.as_posix()).replace("$DEMO", DEMO.as_posix())
        return value

    return build_from(Recipe, resolved(to_dict(recipe)), "the recipe")


def teacher_folder(recipe: Recipe, layout: Layout) -> Path:
    """Folder of the teacher: where it will be trained, or the given one, downloaded if it lies on the hub."""
    if recipe.teacher.scratch is not None:
        return layout.teacher
    return resolve_model(str(recipe.teacher.model), recipe.teacher.revision)


def distill_text(
    options: DistillOptions, *, student: str, teacher: str | None, run: Path, given: Collection[str] = ()
) -> DistillResult:
    """`compress distill`: prepare the text in RUN/data (or take a token store as it is) and train RUN/student on it.

    Called again, it continues or returns the finished result. `given` names the data options that the user wrote down,
    which a token store must have been made with.

    Raises:
        UsageError: a token store was made with others; and as `distill` and `prepare`.
    """
    with contextlib.ExitStack() as lock:
        on_main(lambda: lock.enter_context(owned(run)))
        store = on_main(lambda: _store_of(options, given, student=student, teacher=teacher, run=run))
        return distill(
            options.distill, student=student, teacher=teacher, data=store, out=run / "student", work=run / "train"
        )


def _store_of(options: DistillOptions, given: Collection[str], *, student: str, teacher: str | None, run: Path) -> Path:
    named = Path(options.data.dataset)
    if (named / INDEX).is_file():
        of_training = {"tokens"} if options.data.tokens == options.distill.tokens else set()  # as --tokens sets both
        if differing := options_unlike(named, options.data, set(given) - of_training):
            raise UsageError(
                f"{named} is a token store, and was made with other options: {'; '.join(differing)}. Leave them out, "
                "or name the text, to prepare it with them."
            )
        return named
    start, _ = check_start(options.distill, student=student, teacher=teacher, out=run / "student")
    prepare(options.data, start, run / "data")
    return run / "data"
