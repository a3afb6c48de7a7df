"""`compress run`: a recipe's steps in order, each skipped when its result is there and unchanged.

    world (demo only) -> trim (if asked for) -> prune -> data -> cache (if the teacher has one) -> distill (on each
    source, and merge, if asked for) -> eval -> report

A teacher that is trained here needs the data, so there: data -> teacher -> prune -> distill. Another is cut first: what
is wrong with it shows before hours of preparing text; unless its layers are measured, or the cut repaired, on that
text. A given student needs no cut.

`compress.run` and `compress.verify` alone know the steps, which meet in the run folder. Under a launcher all processes
train and evaluate together; the main one does the rest while others wait.
"""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from compress.base.config import build_from, to_dict
from compress.base.disk import owned
from compress.base.errors import Faults, UsageError
from compress.base.outputs import require_outputs
from compress.base.processes import on_main
from compress.base.progress import say
from compress.demo import DEMO
from compress.model.files import local_model, resolve_model
from compress.model.remote_code import trusting
from compress.report import write_report
from compress.run.evaluations import show_speeds
from compress.run.layout import Layout
from compress.run.preflight import Known, check_run, check_run_folder, fit_recipe, run_output
from compress.run.recipe import Recipe, load_recipe, write_recipe
from compress.run.recipe_steps import steps_of
from compress.run.redo import Redo, begin, intended
from compress.run.steps import Left, Step, states


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
    if recipe.sweep is not None:
        raise UsageError("This recipe has a `sweep`, which is several runs: use `compress sweep`.")
    run = run_folder(recipe, out)
    with begun_run(recipe, run, redo) as begun:
        for step in begun.steps:
            begun.make(step)
        begun.finish()
    return run


@dataclasses.dataclass(frozen=True)
class BegunRun:
    """A run that this process is at: nothing was found that would refuse it."""

    recipe: Recipe
    """Resolved."""
    layout: Layout
    steps: list[Step]
    redo: Redo

    def make(self, step: Step) -> None:
        """Make what a step leaves, unless it is there; raises as `run_recipe`."""
        if on_main(lambda: _is_left_to_make(step, self.steps, self.redo)):
            step.make() if step.together else on_main(step.make)
            if step.group in ("world", "trim"):  # what the others are made from is there now, and can be looked at
                on_main(lambda: look_ahead(self.recipe, self.layout, (), download=True).refuse())

    def finish(self) -> None:
        """Write the report."""
        on_main(self._end)

    def _end(self) -> None:
        if self.recipe.eval.speed:
            show_speeds(self.layout)
        write_report(self.layout.run)
        self.redo.finish()


@contextlib.contextmanager
def begun_run(recipe: Recipe, run: Path, redo: Collection[str] = ()) -> Iterator[BegunRun]:
    """A run of a recipe in its folder, which is this process's until the block ends; raises as `run_recipe`."""
    layout, asked = Layout(run), list(redo)
    with contextlib.ExitStack() as held:
        held.enter_context(trusting(recipe.teacher.trust_remote_code))
        on_main(lambda: require_outputs(run_output(run)))
        on_main(lambda: held.enter_context(owned(run)))
        resolved = on_main(lambda: _fitted(recipe, layout, asked))
        if resolved.target is not None and resolved.target.layers is not None:
            recipe = recipe.with_depth(resolved.target.layers)
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, seq_len=resolved.data.seq_len))
        if resolved.eval != resolve_paths(recipe, run).eval:  # of a masked language model
            recipe = dataclasses.replace(recipe, eval=recipe.eval.of_masked())
        steps = _steps(resolved, layout)
        yield BegunRun(resolved, layout, steps, on_main(lambda: _begin(recipe, steps, layout, asked)))


@contextlib.contextmanager
def joined_run(recipe: Recipe, run: Path) -> Iterator[BegunRun]:
    """A run that another process has begun, and for which this one works until the block ends; raises as
    `run_recipe`."""
    layout = Layout(run)
    with trusting(recipe.teacher.trust_remote_code):
        resolved = fit_recipe(resolve_paths(recipe, run), layout, measure=False)
        yield BegunRun(resolved, layout, _steps(resolved, layout), Redo.under_way(layout))


def _steps(resolved: Recipe, layout: Layout) -> list[Step]:
    found = on_main(lambda: download_models(resolved))
    return steps_of(resolved, layout, lambda name, revision: found[name, revision])


def _fitted(recipe: Recipe, layout: Layout, redo: Collection[str]) -> Recipe:
    """A recipe as it will be run, once nothing is found that would refuse it; what it takes to know how deep the
    student is to be is measured after that, and looked at again."""
    recipe = resolve_paths(recipe, layout.run)
    fitted = fit_recipe(recipe, layout, measure=False)
    look_ahead(fitted, layout, redo, download=True).refuse()
    if fitted.target is None or fitted.target.decode_speedup is None:
        return fitted
    timed = fit_recipe(recipe, layout, measure=True)
    if timed != fitted:
        look_ahead(timed, layout, redo, download=True).refuse()
    return timed


def _begin(recipe: Recipe, steps: Sequence[Step], layout: Layout, asked: Sequence[str]) -> Redo:
    redo = begin(steps, layout, asked)
    write_recipe(recipe, layout.recipe)
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


@dataclasses.dataclass(frozen=True)
class Outlook:
    """What can be said of a run before it begins."""

    standing: dict[str, str]
    """Where each step stands, by name; a step whose result `redo` would move aside is `done anew`."""
    known: Known
    faults: Faults

    def refuse(self) -> None:
        """Say all that is wrong, if something is; raises as `run_recipe`."""
        self.faults.refuse()


def look_ahead(recipe: Recipe, layout: Layout, redo: Collection[str], *, download: bool) -> Outlook:
    """Where each step of a resolved recipe stands, and all that would refuse those that are left.

    Nothing is written. Of what lies on the hub only small files are fetched, and with `download` the benchmarks' data
    sets.
    """
    steps, faults = steps_of(recipe, layout, local_model), Faults()
    check_run_folder(recipe, layout, steps, faults)
    found = states(steps)
    asked = faults.of(lambda: intended(steps, layout, list(redo), found))
    anew = [] if asked is None else [name for name in asked.aside if name not in asked.moved]
    left = [step for step in steps if step.name in anew or found[step.name][0] != "done"]
    known = check_run(recipe, layout, Left.of(left), faults if left else Faults(), download=download)
    standing = {name: "done anew" if name in anew else state for name, (state, _) in found.items()}
    return Outlook(standing, known, faults)


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


def download_models(recipe: Recipe) -> dict[tuple[str, str | None], Path]:
    """Folders of the models that a recipe names, by name and revision, downloaded where they lie on the hub."""
    named = [(recipe.teacher.model, recipe.teacher.revision)]
    named += [(recipe.student.model, recipe.student.revision)] if recipe.student else []
    named += [(other.model, other.revision) for other in recipe.distill.mixture.with_] if recipe.distill.mixture else []
    return {(name, revision): resolve_model(name, revision) for name, revision in named if name is not None}
