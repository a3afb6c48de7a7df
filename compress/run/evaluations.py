"""The last steps of a run: scores of its models, and the speed of teacher, cut and healed student."""

import contextlib
import functools
import time
from collections.abc import Mapping
from pathlib import Path

from compress.base.config import to_dict
from compress.base.disk import read_json, write_json
from compress.base.outputs import Output, has_manifest
from compress.base.processes import on_main
from compress.base.progress import say
from compress.base.records import manifest
from compress.evaluate import EvalConfig, compare_speed, evaluate_model, evaluation_inputs, evaluation_outputs
from compress.model.files import model_fingerprint
from compress.model.gguf import is_gguf
from compress.run.branches import branch_models
from compress.run.exporting import dequantised, exported_models, gguf_fingerprint
from compress.run.finders import Folder, at, store_of
from compress.run.growing import grown_models
from compress.run.layout import Layout
from compress.run.models import Models
from compress.run.recipe import Recipe
from compress.run.steps import Step, groups_of

TIMED = ("teacher", "student-init", "student")
"""Models whose speed is measured, by the stem of their files in RUN/eval/."""
EXPORT_SPEED = "speed-export"
"""The same of the healed student beside its exports that have a form of their own in memory."""


def evaluations(
    recipe: Recipe,
    layout: Layout,
    models: Models,
    *,
    before: list[Step],
    start: list[Step],
    healed: list[Step],
    grown: list[Step],
    exported: list[Step],
) -> list[Step]:
    """Scores of teacher (before its fine-tuning too), cut, branches, healed student, grown models and exports; speed of
    teacher, cut and student, timed in turns, and of the student and its exports.

    The teacher comes from the steps `before`, the cut from those of `start` too, the student from `healed` as well, and
    the grown models and exports from `grown` and `exported`, after all of these.
    """
    timed = dict(zip(TIMED, (models.teacher, models.student, at(layout.student)), strict=True))
    scored = timed
    if recipe.teacher.finetune is not None and models.given is not None:
        scored = {"teacher-before": models.given, **timed}
    branches = {name: at(folder) for name, folder in branch_models(recipe, layout).items()}
    between = {name: at(folder) for name, folder in grown_models(recipe, layout).items()}
    exports = exported_models(recipe, layout)
    folders = {name: at(path) for name, path in exports.items() if not is_gguf(path)}
    made = {
        "teacher-before": [step for step in before if step.group != "teacher"],
        "teacher": before,
        "student-init": [*before, *start],
        **{name: [*before, *start, *healed[:-1]] for name in branches},
        "student": [*before, *start, *healed],
        **{name: [*before, *start, *healed, *grown] for name in between},
        **{name: [*before, *start, *healed, *exported] for name in exports},
    }
    steps, config = [], recipe.eval.afterwards
    scores = functools.partial(_evaluation, config.without_speed(), layout, tokenizer=models.tokenizer)
    for name, model in {**scored, **branches, **between, **folders}.items():
        reference = None if name.startswith("teacher") else models.teacher
        steps.append(scores(name, model, reference, after=groups_of(made[name])))
    for name, path in exports.items():
        if is_gguf(path):
            step = scores(name, timed["student"], models.teacher, after=groups_of(made[name]), file=path)
            steps.append(step)
    if config.speed:
        speed = config.only_speed()
        steps.append(_speed(speed, layout, "speed", timed, groups_of(made["student"])))
        if folders:
            both = {"student": timed["student"], **folders}
            steps.append(_speed(speed, layout, EXPORT_SPEED, both, groups_of([*before, *start, *healed, *exported])))
    return steps


def _evaluation(
    config: EvalConfig,
    layout: Layout,
    name: str,
    model: Folder,
    reference: Folder | None,
    *,
    after: frozenset[str],
    tokenizer: Folder,
    file: Path | None = None,
) -> Step:
    """The scores of a model, or of a GGUF `file` that was made of it."""
    out = layout.evaluation(name)
    inputs = evaluation_inputs(model, config, teacher=reference, text=lambda: store_of(layout).path, earlier=out)

    def make() -> None:
        say(f"eval {name}: {', '.join(config.tasks) or 'no benchmarks'}")
        beside = None if reference is None else reference()
        words = tokenizer()
        with contextlib.nullcontext(model()) if file is None else dequantised(file, model()) as folder:
            evaluate_model(folder, config, teacher=beside, text=layout.data, out=out, text_tokenizer=words)
        if file is not None:
            on_main(lambda: write_json(out, {**read_json(out), "model": str(file)}))

    return Step(
        name=f"eval {name}",
        group="eval",
        after=after,
        record=out,
        kind=EvalConfig,
        settings=to_dict(config),
        inputs=inputs if file is None else {**inputs, "model": functools.partial(gguf_fingerprint, file)},
        outputs=tuple(evaluation_outputs(out)),
        make=make,
        together=True,
    )


def _speed(config: EvalConfig, layout: Layout, name: str, models: Mapping[str, Folder], after: frozenset[str]) -> Step:
    record, settings = layout.evaluation(name), to_dict(config)
    inputs = {role: functools.partial(_fingerprint, model) for role, model in models.items()}

    def make() -> None:
        started = time.monotonic()
        found = {role: find() for role, find in inputs.items()}
        speed = compare_speed({role: model() for role, model in models.items()}, config)
        made = manifest(config=settings, inputs=found, outputs={}, seconds=time.monotonic() - started)
        write_json(record, {**speed, "manifest": made})

    return Step(
        name=name,
        group="eval",
        after=after,
        record=record,
        kind=EvalConfig,
        settings=settings,
        inputs=inputs,
        outputs=(Output(record, "the speed of models", has_manifest(*(role for role in models if role in TIMED))),),
        make=make,
    )


def _fingerprint(model: Folder) -> dict[str, str]:
    return model_fingerprint(model())


def show_speeds(layout: Layout) -> None:
    """Write the speeds that were measured into the eval JSONs of their models."""
    if not layout.evaluation("speed").is_file():
        return
    speeds = read_json(layout.evaluation("speed"))
    for name in TIMED:
        scores = read_json(layout.evaluation(name))
        if scores["speed"] != speeds[name]:
            write_json(layout.evaluation(name), {**scores, "speed": speeds[name]})
