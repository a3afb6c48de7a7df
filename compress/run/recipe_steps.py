"""A recipe as steps: the settings, the inputs and the making of each, in the order in which they are done."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compress.base.config import to_dict
from compress.base.currency import Inputs, Missing
from compress.base.disk import sha256_json, sha256_tree, staged_folder, write_json
from compress.base.outputs import Output, has_record
from compress.base.processes import on_main
from compress.base.progress import say
from compress.base.records import manifest
from compress.data import INDEX, DataConfig, TokenStore, changes_of_begun, prepare, store_inputs, store_outputs
from compress.demo import WorldConfig, write_world
from compress.distill import DistillConfig, begun_otherwise, distill, student_output, training_output
from compress.distill.teachers.cache import TeacherCache
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
from compress.run.caching import caching
from compress.run.evaluations import evaluations
from compress.run.finders import Folder, at, if_there, store_of
from compress.run.growing import growing
from compress.run.layout import Layout
from compress.run.models import Find, Models
from compress.run.rank_after import prune_best, with_heal
from compress.run.recipe import Recipe, ScratchTeacher, TeacherConfig
from compress.run.scratch import initialise
from compress.run.steps import Step, groups_of, unless_opened


def steps_of(recipe: Recipe, layout: Layout, find: Find) -> list[Step]:
    """The steps of a resolved recipe (see `resolve_paths`) in a run folder; `find` finds the models that it names."""
    models = Models.of(recipe, layout, find)
    world = [_world(recipe.world, layout)] if recipe.world is not None else []
    reader = None if recipe.student is None else models.given
    data = preparation(recipe.data, layout, models.tokenizer, reader, after=groups_of(world))
    taught = _teaching(recipe.teacher, layout, models, after=groups_of([*world, data]))
    measured = [*world, data] if needs_data(recipe.prune) else []
    cut = [] if recipe.student else [_cut(recipe, layout, models.teacher, after=groups_of([*measured, *taught]))]
    first = [data, *taught, *cut] if taught or measured else [*cut, data]
    made = [*world, *first]
    cached = [] if recipe.teacher.cache is None else [caching(recipe, layout, models.teacher, after=groups_of(made))]
    healed = training(
        "distill",
        recipe.distill,
        layout,
        layout.student,
        models.student,
        models.teacher,
        groups_of([*made, *cached]),
        cache=cached[0].record.parent if cached else None,
    )
    until = groups_of([*made, *cached, healed])
    grown = [] if recipe.grow is None else [growing(recipe, layout, models.teacher, after=until)]
    return [*made, *cached, healed, *grown, *evaluations(recipe, layout, models, before=made, after=[healed, *grown])]


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
    """Whether layers are to be measured, or the cut repaired, on the run's own text."""
    measured = prune.rank_after is not None or prune.by not in (None, *WITHOUT_TEXT)
    return prune.calibration is None and (prune.repair or measured)


def needs_data(prune: PruneConfig) -> bool:
    """Whether the run's own text is needed before the cut."""
    return prune.rank_after is not None or measures_data(prune)


def asked_cut(recipe: Recipe, layout: Layout) -> tuple[PruneConfig, str | RankingConfig | RankAfterConfig]:
    """A recipe's cut and its choice of layers, with the run's own text named where it is the one to measure on."""
    asked = recipe.prune
    if measures_data(asked):
        asked = dataclasses.replace(asked, calibration=str(layout.data))
    choice = asked.choice
    if isinstance(choice, RankAfterConfig):
        choice = with_heal(choice, recipe.distill, layout.data)
    return asked, choice


def _cut(recipe: Recipe, layout: Layout, teacher: Folder, after: frozenset[str]) -> Step:
    asked, choice = asked_cut(recipe, layout)
    out = layout.student_init
    record = out / "prune.json"

    def make() -> None:
        if isinstance(choice, RankAfterConfig):
            work = layout.ranking
            result = prune_best(asked, choice, recipe.distill, teacher=str(teacher()), out=out, work=work)
        else:
            result = on_main(lambda: prune(teacher(), out, choice, **asked.how))
        say(f"prune: {result.describe()}")

    inputs = prune_inputs(lambda: model_fingerprint(teacher()), choice, asked.repairing)
    return Step(
        name="prune",
        group="prune",
        after=after,
        record=record,
        kind=PruneConfig,
        settings=prune_settings(choice, **asked.how),
        inputs={role: functools.partial(if_there, find) for role, find in inputs.items()},
        outputs=(Output(out, "a student", has_record(record.name), folder=True),),
        make=make,
        together=True,
    )


def training_inputs(
    student: Folder,
    teacher: Folder | None,
    data: Callable[[], TokenStore],
    cache: Callable[[], Path | None] = lambda: None,
) -> Inputs:
    """What a training is made from; see `compress.distill.loop.session.fingerprints`."""

    def of_cache() -> str | None:
        folder = cache()
        return None if folder is None else TeacherCache.open(folder).fingerprint

    return {
        "student": lambda: sha256_json(model_fingerprint(student())),
        "teacher": lambda: None if teacher is None else sha256_json(model_fingerprint(teacher())),
        "data": lambda: data().fingerprint,
        "cache": lambda: if_there(of_cache),
    }


def training(
    name: str,
    config: DistillConfig,
    layout: Layout,
    out: Path,
    student: Folder,
    teacher: Folder | None,
    after: frozenset[str] = frozenset(),
    store: Callable[[], TokenStore] | None = None,
    cache: Path | None = None,
) -> Step:
    """The training of `student` into `out` on RUN/data, or another store; without `teacher`, on the text alone, and
    with a `cache` of it from that."""
    store = store or (lambda: store_of(layout))
    work, inputs = layout.training(out), training_inputs(student, teacher, store, lambda: cache)

    def make() -> None:
        say(f"{name}: {student()} -> {out}")
        source = None if teacher is None else teacher()
        distill(config, student=student(), teacher=source, data=store().path, out=out, work=work, cache=cache)

    return Step(
        name=name,
        group=name,
        after=after,
        record=out / "distill.json",
        kind=DistillConfig,
        settings=to_dict(config),
        inputs=inputs,
        outputs=(training_output(work), student_output(out)),
        make=make,
        together=True,
        begun=lambda: begun_otherwise(work, config, inputs),
    )
