"""`compress run`: a recipe's steps in order, each skipped when its result is there and unchanged.

    world (demo only) -> data -> teacher (only when trained from scratch) -> prune -> distill -> eval -> report

This is the one module that knows all three steps. They meet in the run folder; see docs for its layout.
"""

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compress.artifacts import is_current, read_json, sha256_json, write_json, write_text
from compress.config import build, config, load_yaml, parse_yaml, to_dict
from compress.data import DataConfig, TokenStore, prepare
from compress.demo import WorldConfig, write_world
from compress.distill import DistillConfig, distill
from compress.errors import UsageError
from compress.evaluate import EvalConfig, evaluate_model
from compress.evaluate.speed import compare_speed
from compress.models import empty_model, model_fingerprint, resolve_model
from compress.progress import say
from compress.prune import PruneConfig, prune
from compress.report import write_report

EVALUATED = ("teacher", "student-init", "student")


@config
class ScratchTeacher:
    """A teacher trained here from random weights, for demos and studies with no model at hand."""

    architecture: dict[str, Any]
    """Fields of its config.json, `model_type` included; the vocabulary comes from the tokenizer."""
    tokenizer: str
    """Folder of its tokenizer."""
    train: DistillConfig
    """How to train it: the settings of `distill` with `alpha: 0`."""


@config
class TeacherConfig:
    """Where the teacher comes from: exactly one of `model` and `scratch`."""

    model: str | None = None
    """Hub id or local folder."""
    revision: str | None = None
    """Commit, tag or branch on the hub; the default branch when absent."""
    scratch: ScratchTeacher | None = None
    """Train one here instead."""

    def __post_init__(self) -> None:
        if (self.model is None) == (self.scratch is None):
            raise ValueError("write exactly one of `model` and `scratch`")
        if self.scratch is not None and self.scratch.train.alpha != 0:
            raise ValueError("a teacher from scratch has no teacher of its own: write `train: {alpha: 0}`")


@config
class Recipe:
    """Everything a run depends on. In paths, `$RUN` stands for the run folder."""

    name: str
    """Names the run, and its folder runs/NAME by default."""
    teacher: TeacherConfig
    """The model to make smaller."""
    world: WorldConfig | None = None
    """Generate the demo's world of text into RUN/world first."""
    prune: PruneConfig = PruneConfig()
    """Which layers stay."""
    data: DataConfig
    """The text to heal on."""
    distill: DistillConfig = DistillConfig()
    """How to heal."""
    eval: EvalConfig = EvalConfig()
    """What to measure."""


def load_recipe(source: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe file, apply `a.b=value` overrides and validate it.

    Raises:
        UsageError: naming the dotted path, the line and, for an unknown key, the nearest known one.
    """
    document = load_yaml(Path(source))
    document.override(overrides)
    return build(Recipe, document)


def run_recipe(recipe: Recipe | str | Path, out: str | Path | None = None) -> Path:
    """Run a recipe to its report and return the run folder (default `runs/NAME`).

    Called again, it skips every step whose config, inputs and outputs are as its manifest says, redoes those
    that changed, and continues one that was cut.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    run = Path(out) if out is not None else Path("runs") / recipe.name
    run.mkdir(parents=True, exist_ok=True)
    write_text(run / "recipe.yaml", dump_recipe(recipe))
    recipe = resolve_paths(recipe, run)

    if recipe.world is not None:
        _world(recipe.world, run)
    teacher = _teacher(recipe, run)
    _prune(recipe, teacher, run)
    store = _data(recipe, teacher, run / "data")
    _heal(recipe, teacher, store, run)
    _evaluate(recipe, teacher, run)
    write_report(run)
    return run


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every default written out."""
    import yaml

    return yaml.safe_dump(to_dict(recipe), sort_keys=False, allow_unicode=True)


def resolve_paths(recipe: Recipe, run: Path) -> Recipe:
    """The recipe with `$RUN` replaced by the run folder in every path."""
    text = dump_recipe(recipe).replace("$RUN", run.as_posix())
    return build(Recipe, parse_yaml(text, "the resolved recipe"))
