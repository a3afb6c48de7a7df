"""A recipe as steps: the settings, the inputs and the making of each, in the order in which they are done."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.base.config import to_dict
from compress.base.currency import Inputs, Missing
from compress.base.disk import sha256_tree, staged_folder, write_json
from compress.base.outputs import Output, has_record
from compress.base.processes import on_main
from compress.base.progress import say
from compress.base.records import manifest
from compress.data import INDEX, DataConfig, TokenStore, changes_of_begun, prepare, store_inputs, store_outputs
from compress.demo import WorldConfig, write_world
from compress.distill import DistillConfig
from compress.evaluate import AbilityTest, EvalConfig
from compress.model.files import model_fingerprint
from compress.prune import (
    WITHOUT_TEXT,
    PruneConfig,
    RankAfterConfig,
    RankingConfig,
    prune,
    prune_inputs,
    prune_settings,
)
from compress.run.branches import branching
from compress.run.caching import cache_folder, caching
from compress.run.evaluations import evaluations
from compress.run.exporting import exporting
from compress.run.finders import Folder, at
from compress.run.growing import growing
from compress.run.layout import Layout
from compress.run.models import Find, Models, cut_of, others, whole_teacher
from compress.run.rank_after import prune_best, with_heal
from compress.run.recipe import Recipe
from compress.run.scratch import initialise
from compress.run.sections import ScratchTeacher, TeacherConfig
from compress.run.stages import Stage
from compress.run.steps import Step, folder_step, groups_of, unless_opened
from compress.run.training import training
from compress.run.trimming import trimming


def steps_of(recipe: Recipe, layout: Layout, find: Find) -> list[Step]:
    """The steps of a resolved recipe (see `resolve_paths`) in a run folder; `find` finds the models that it names."""
    models = Models.of(recipe, layout, find)
    world = [_world(recipe.world, layout)] if recipe.world is not None else []
    if recipe.trim is not None:
        whole = whole_teacher(recipe.teacher, find)
        world.append(trimming(recipe, layout, whole, after=groups_of(world)))
    reader = None if recipe.student is None or models.given is None else models.reader
    data = preparation(recipe.data, layout, models.tokenizer, reader, after=groups_of(world))
    taught = _teaching(recipe.teacher, layout, models, after=groups_of([*world, data]))
    chain = recipe.chain
    measures = any(stage.prune is not None and needs_data(stage.prune) for stage in chain)
    measured = [*world, data] if measures else []
    cut = _cut(recipe, chain[0], layout, models, after=groups_of([*measured, *taught]))
    made = [*world, *([data, *taught, *cut] if taught or measured else [*cut, data])]
    cached = [] if recipe.teacher.cache is None else [caching(recipe, layout, models.teacher, after=groups_of(made))]
    made += cached
    earlier: list[Step] = []
    for stage in chain[:-1]:
        earlier += _stage(recipe, stage, layout, models, others(stage.distill, find), [*made, *earlier])
    beside = others(chain[-1].distill, find)
    if recipe.merge is not None:
        healed = branching(recipe, recipe.merge, layout, models, beside, after=groups_of(made))
    else:
        *later, last = _stage(recipe, chain[-1], layout, models, beside, [*made, *earlier])
        earlier, healed = [*earlier, *later], [last]
    before, start, made = [*world, data, *taught], [*cut, *earlier], [*made, *earlier, *healed]
    grown = [] if recipe.grow is None else [growing(recipe, layout, models.teacher, after=groups_of(made))]
    exported = exporting(recipe, layout, after=groups_of(made))
    ends = {"grown": grown, "exported": exported}
    scores = evaluations(recipe, layout, models, before=before, start=start, healed=healed, **ends)
    # An export's README.md has scores of the student, which are made before it.
    first, late = ([step for step in scores if step.follows({"export"}) is after] for after in (False, True))
    return [*made, *grown, *first, *exported, *late]


def _written(record: Path, settings: Mapping[str, Any], inputs: Inputs, write: Callable[[Path], None]) -> None:
    """`write` a step's folder, with a manifest in its file `record`."""
    started = time.monotonic()
    found = {role: find() for role, find in inputs.items()}
    with staged_folder(record.parent) as partial:
        write(partial)
        outputs, seconds = sha256_tree(partial), time.monotonic() - started
        made = manifest(config=settings, inputs=found, outputs=outputs, seconds=seconds)
        write_json(partial / record.name, {"manifest": made})


def _world(world: WorldConfig, layout: Layout) -> Step:
    record, settings = layout.world / "world.json", to_dict(world)
    return Step(
        name="world",
        group="world",
        record=record,
        kind=WorldConfig,
        settings=settings,
        inputs={},
        outputs=(Output(layout.world, "the demo's world", has_record(record.name), folder=True),),
        make=lambda: _written(record, settings, {}, lambda out: write_world(out, world)),
    )


def preparation(
    config: DataConfig,
    layout: Layout,
    tokenizer: Folder,
    reader: Folder | None = None,
    after: frozenset[str] = frozenset(),
) -> Step:
    """The making of RUN/data; `tokenizer` finds the folder of the one to use, `reader` that of another model to read
    the text (see `prepare`)."""
    out = layout.data

    def make() -> None:
        say(f"data: {', '.join(config.datasets)} -> {out}")
        prepare(config, tokenizer(), out, reader=None if reader is None else reader())

    return Step(
        name="data",
        group="data",
        after=after,
        record=out / INDEX,
        kind=DataConfig,
        settings=to_dict(config),
        inputs=store_inputs(config, tokenizer, out),
        outputs=tuple(store_outputs(out)),
        make=make,
        intact=unless_opened(TokenStore.open, out),
        begun=lambda: changes_of_begun(config, tokenizer, out),
    )


def _teaching(config: TeacherConfig, layout: Layout, models: Models, after: frozenset[str]) -> list[Step]:
    """The training of the teacher: from a random start, or from the given model; none where it is used as it is."""
    if config.scratch is not None:
        start = at(layout.teacher_init)
        trained = training("teacher", config.scratch.train, layout, layout.teacher, start, None, after)
        return [_random_start(config.scratch, layout), trained]
    if config.finetune is not None and models.given is not None:
        return [training("teacher", config.finetune, layout, layout.teacher, models.given, None, after)]
    return []


def _random_start(scratch: ScratchTeacher, layout: Layout) -> Step:
    record = layout.teacher_init / "init.json"
    settings = {"architecture": scratch.architecture, "seed": scratch.train.seed}
    inputs = {"tokenizer": functools.partial(_tokenizer_files, Path(scratch.tokenizer))}
    return Step(
        name="teacher-init",
        group="teacher",
        record=record,
        kind=None,
        settings=settings,
        inputs=inputs,
        outputs=(Output(layout.teacher_init, "a random model", has_record(record.name), folder=True),),
        make=lambda: _written(record, settings, inputs, lambda out: initialise(scratch, out)),
    )


def _tokenizer_files(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        raise Missing(f"the tokenizer's folder {folder} is not there")
    return sha256_tree(folder, "*.json")


def measures_data(prune: PruneConfig) -> bool:
    """Whether layers or experts are to be measured, or the cut repaired, on the run's own text."""
    measured = prune.rank_after is not None or prune.by not in (None, *WITHOUT_TEXT)
    return prune.calibration is None and (prune.repair or measured or prune.experts is not None)


def needs_data(prune: PruneConfig) -> bool:
    """Whether the run's own text is needed before the cut."""
    return prune.rank_after is not None or measures_data(prune)


def asked_cut(
    prune: PruneConfig, healing: DistillConfig, scoring: EvalConfig, layout: Layout
) -> tuple[PruneConfig, str | RankingConfig | RankAfterConfig]:
    """A cut and its choice of layers, with the run's own text named where it is the one to measure on."""
    asked = prune
    if measures_data(asked):
        asked = dataclasses.replace(asked, calibration=str(layout.data))
    choice = asked.choice
    if isinstance(choice, RankAfterConfig):
        choice = with_heal(choice, healing, layout.data, scoring)
    return asked, choice


def _cut(recipe: Recipe, stage: Stage, layout: Layout, models: Models, after: frozenset[str]) -> list[Step]:
    """The cut of the teacher, in a later stage of the student before it; none where nothing is cut."""
    if stage.prune is None:
        return []
    asked, choice = asked_cut(stage.prune, stage.distill, recipe.eval.afterwards, layout)
    out, name = layout.stage(stage.place).student_init, stage.step("prune")
    teacher, healed_from = models.teacher, None
    if stage.number > 1:
        before = recipe.chain[stage.number - 2]
        teacher, healed_from = at(layout.stage(before.place).student), cut_of(recipe.chain, before, layout)

    def make() -> None:
        if isinstance(choice, RankAfterConfig):
            work = layout.ranking
            scoring = recipe.eval.afterwards
            result = prune_best(asked, choice, stage.distill, scoring, teacher=str(teacher()), out=out, work=work)
        else:
            result = on_main(lambda: prune(teacher(), out, choice, healed_from=healed_from, **asked.how))
        say(f"{name}: {result.describe()}")

    step = folder_step(
        name,
        "a student",
        out / "prune.json",
        make,
        kind=PruneConfig,
        settings=prune_settings(choice, **asked.how),
        inputs=prune_inputs(lambda: model_fingerprint(teacher()), choice, asked.repairing, asked.how["experts"]),
        after=after,
        together=True,
    )
    return [step]


def _stage(
    recipe: Recipe, stage: Stage, layout: Layout, models: Models, beside: Sequence[Folder], before: Sequence[Step]
) -> list[Step]:
    """The cut of a stage, the first one's aside, and its healing, after the steps `before`."""
    cut = _cut(recipe, stage, layout, models, after=groups_of(before)) if stage.number > 1 else []
    return [*cut, _healing(recipe, stage, layout, models, beside, after=groups_of([*before, *cut]))]


def _healing(
    recipe: Recipe, stage: Stage, layout: Layout, models: Models, beside: Sequence[Folder], after: frozenset[str]
) -> Step:
    """The training of a stage's cut, or of a given student, by the teacher or by the student of the stage before."""
    chain, cache = recipe.chain, recipe.teacher.cache
    start = models.student if stage.last else at(cut_of(chain, stage, layout))
    teacher = models.teacher
    if stage.teacher != "original":
        teacher, cache = at(layout.stage(chain[stage.number - 2].place).student), None
    return training(
        stage.step("distill"),
        stage.distill,
        layout,
        layout.stage(stage.place).student,
        start,
        teacher,
        after,
        cache=None if cache is None else cache_folder(cache, layout),
        others=beside,
        ability=ability_test(recipe),
    )


def ability_test(recipe: Recipe) -> AbilityTest | None:
    """What a student of the recipe is scored on while it is trained."""
    during, config = recipe.eval.during, recipe.eval.of_training
    kept = None if recipe.target is None else recipe.target.kept
    return None if during is None or config is None else AbilityTest(config, during.every, kept)
