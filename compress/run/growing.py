"""The step of a run that makes models of sizes between its healed student and the teacher."""

import dataclasses
from pathlib import Path

from compress.base.config import to_dict
from compress.base.progress import say
from compress.model.files import model_fingerprint
from compress.prune import GrowConfig, grow_family, grow_inputs
from compress.run.finders import Folder, at
from compress.run.layout import Layout
from compress.run.recipe import Recipe
from compress.run.steps import Step, folder_step


def asked_growth(recipe: Recipe, layout: Layout) -> GrowConfig | None:
    """What a recipe asks for, the run's own text named where that is the one to measure on."""
    config = recipe.grow
    if config is not None and config.reads_text and config.calibration is None:
        return dataclasses.replace(config, calibration=str(layout.data))
    return config


def growing(recipe: Recipe, layout: Layout, teacher: Folder, after: frozenset[str]) -> Step:
    """The models of the sizes that a recipe names."""
    config = asked_growth(recipe, layout)
    assert config is not None
    out, student = layout.grown, at(layout.student)

    def make() -> None:
        say(f"grow: {student()} -> {out}")
        say(grow_family(student(), teacher(), out, config).describe())

    return folder_step(
        "grow",
        "grown models",
        out / "grow.json",
        make,
        kind=GrowConfig,
        settings=to_dict(config),
        inputs=grow_inputs(lambda: model_fingerprint(student()), lambda: model_fingerprint(teacher()), config),
        after=after,
    )


def grown_models(recipe: Recipe, layout: Layout) -> dict[str, Path]:
    """The folder of each model that is grown, by the stem of its evaluation."""
    sizes = sorted(recipe.grow.layers) if recipe.grow is not None else []
    return {f"grown-{size}": layout.grown / str(size) for size in sizes}
