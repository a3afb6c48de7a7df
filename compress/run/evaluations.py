"""The last steps of a run: scores of its models, and the speed of teacher, cut and healed student."""

import functools
import time
from collections.abc import Mapping

from compress.base.config import to_dict
from compress.base.disk import read_json, write_json
from compress.base.outputs import Output, has_manifest
from compress.base.progress import say
from compress.base.records import manifest
from compress.evaluate import EvalConfig, compare_speed, evaluate_model, evaluation_inputs, evaluation_outputs
from compress.model.files import model_fingerprint
from compress.run.finders import Folder, at, store_of
from compress.run.growing import grown_models
from compress.run.layout import Layout
from compress.run.models import Models
from compress.run.recipe import Recipe
from compress.run.steps import Step, groups_of

TIMED = ("teacher", "student-init", "student")
"""Models whose speed is measured, by the stem of their files in RUN/eval/."""


def evaluations(
    recipe: Recipe,
    layout: Layout,
    models: Models,
    *,
    before: list[Step],
    start: list[Step],
    healed: Step,
    grown: list[Step],
) -> list[Step]:
    """Scores of teacher (before its fine-tuning too), cut, healed student and grown models; speed of the first three,
    timed in turns.

    The teacher comes from the steps `before`, the cut from those of `start` too, the student from `healed` as well, and
    the grown models from `grown`, after all of these.
    """
    timed = dict(zip(TIMED, (models.teacher, models.student, at(layout.student)), strict=True))
    scored = timed
    if recipe.teacher.finetune is not None and models.given is not None:
        scored = {"teacher-before": models.given, **timed}
    between = {name: at(folder) for name, folder in grown_models(recipe, layout).items()}
    made = {
        "teacher-before": [step for step in before if step.group != "teacher"],
        "teacher": before,
        "student-init": [*before, *start],
        "student": [*before, *start, healed],
        **{name: [*before, *start, healed, *grown] for name in between},
    }
    steps, config = [], recipe.eval.afterwards
    for name, model in {**scored, **between}.items():
        after = groups_of(made[name])
        reference = None if name.startswith("teacher") else models.teacher
        steps.append(_evaluation(config.without_speed(), layout, name, model, reference, after, models.tokenizer))
    if config.speed:
        steps.append(_speed(config.only_speed(), layout, timed, groups_of(made["student"])))
    return steps


def _evaluation(
    config: EvalConfig,
    layout: Layout,
    name: str,
    model: Folder,
    reference: Folder | None,
    after: frozenset[str],
    tokenizer: Folder,
) -> Step:
    out = layout.evaluation(name)

    def make() -> None:
        say(f"eval {name}: {', '.join(config.tasks) or 'no benchmarks'}")
        beside = None if reference is None else reference()
        words = tokenizer()
        evaluate_model(model(), config, teacher=beside, text=layout.data, out=out, text_tokenizer=words)

    return Step(
        name=f"eval {name}",
        group="eval",
        after=after,
        record=out,
        kind=EvalConfig,
        settings=to_dict(config),
        inputs=evaluation_inputs(model, config, teacher=reference, text=lambda: store_of(layout).path, earlier=out),
        outputs=tuple(evaluation_outputs(out)),
        make=make,
        together=True,
    )


def _speed(config: EvalConfig, layout: Layout, models: Mapping[str, Folder], after: frozenset[str]) -> Step:
    record, settings = layout.evaluation("speed"), to_dict(config)
    inputs = {name: functools.partial(_fingerprint, model) for name, model in models.items()}

    def make() -> None:
        started = time.monotonic()
        found = {role: find() for role, find in inputs.items()}
        speed = compare_speed({name: model() for name, model in models.items()}, config)
        made = manifest(config=settings, inputs=found, outputs={}, seconds=time.monotonic() - started)
        write_json(record, {**speed, "manifest": made})

    return Step(
        name="speed",
        group="eval",
        after=after,
        record=record,
        kind=EvalConfig,
        settings=settings,
        inputs=inputs,
        outputs=(Output(record, "the speed of all models", has_manifest(*models)),),
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
