"""The steps of a run that heal one cut on each source of its text apart, and merge what comes of it."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from compress.base.config import to_dict
from compress.base.progress import say
from compress.data.store.blend import part_folder
from compress.model.files import model_fingerprint
from compress.run.finders import Folder, at, store_in
from compress.run.layout import Layout
from compress.run.models import Models
from compress.run.recipe import Recipe
from compress.run.steps import Step, folder_step, groups_of
from compress.run.training import training
from compress.ship import MergeConfig, Merging, merge
from compress.ship.merging.config import RECORD


def branching(
    recipe: Recipe, how: Merging, layout: Layout, models: Models, beside: Sequence[Folder], after: frozenset[str]
) -> list[Step]:
    """A training of the cut on each source of the text, and the merging of their students into the run's."""
    branches = []
    for number, name in enumerate(recipe.data.names):
        out, store = layout.branch(number).student, functools.partial(store_in, part_folder(layout.data, number))
        start, teacher = models.student, models.teacher
        step = training(f"distill {name}", recipe.distill, layout, out, start, teacher, after, store, others=beside)
        branches.append(dataclasses.replace(step, group="distill"))
    return [*branches, _merging(how, layout, models.student, len(branches), after=after | groups_of(branches))]


def branch_models(recipe: Recipe, layout: Layout) -> dict[str, Path]:
    """The folder of each branch, by the stem of its evaluation."""
    count = len(recipe.data.names) if recipe.merge is not None else 0
    return {f"branch-{number}": layout.branch(number).student for number in range(count)}


def _merging(how: Merging, layout: Layout, start: Folder, count: int, after: frozenset[str]) -> Step:
    """The merging of the branches; what they changed is of the model that they began with."""
    out, branches = layout.student, [at(layout.branch(number).student) for number in range(count)]

    def config(base: str) -> MergeConfig:
        return MergeConfig(**dataclasses.asdict(how), base=base if how.has_base else None)

    def make() -> None:
        models = [branch() for branch in branches]
        say(f"merge: {', '.join(map(str, models))} -> {out}")
        say(merge(models, out, config(str(start()))).describe())

    return folder_step(
        "merge",
        "a merged model",
        out / RECORD,
        make,
        kind=MergeConfig,
        settings=to_dict(config("the cut")),
        inputs={
            "models": lambda: [model_fingerprint(branch()) for branch in branches],
            "base": lambda: [model_fingerprint(start())] if how.has_base else None,
        },
        after=after,
    )
