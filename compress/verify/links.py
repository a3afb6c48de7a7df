"""The links of a run's chain: the very steps of its recipe or, where there is none, what the records themselves say."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from compress.base.currency import Inputs, Missing
from compress.data import text_fingerprint
from compress.distill.publish import RECORD
from compress.model.files import local_model, model_fingerprint
from compress.run.evaluations import EXPORT_SPEED
from compress.run.layout import Layout
from compress.run.recipe_steps import steps_of
from compress.run.steps import Step
from compress.run.training import training_inputs
from compress.verify.chain import Link
from compress.verify.checks import typed
from compress.verify.folder import RunFolder
from compress.verify.records import read_record

_SECTIONS = {"teacher-init": "teacher.scratch", "cache": "teacher.cache", "speed": "eval", EXPORT_SPEED: "eval"}


def links_of(run: RunFolder) -> list[Link]:
    """All links of a run folder, in the order of its steps."""
    if run.resolved is not None:
        layout = Layout(run.path)
        taught = "teacher.finetune" if run.resolved.teacher.finetune else "teacher.scratch.train"
        sections = {**_SECTIONS, "teacher": taught}
        for stage in run.resolved.chain if run.resolved.stages else ():
            sections |= dict.fromkeys(map(stage.step, ("prune", "distill")), f"stages.{stage.number - 1}")
        found = [_of_step(step, run, sections) for step in steps_of(run.resolved, layout, local_model)]
    else:
        found = list(_of_records(run))
    known = {link.record for link in found}
    others = sorted(path for path in run.path.glob("eval/*.json") if path not in known)
    return found + [_of_evaluation(run, path) for path in others]


def _of_step(step: Step, run: RunFolder, sections: Mapping[str, str]) -> Link:
    place = step.places[-1]
    section = sections.get(step.name, step.group)
    name = place.relative_to(run.path).with_suffix("").as_posix() if place.is_relative_to(run.path) else step.name
    return Link(
        name=name, record=step.record, inputs=step.inputs, kind=step.kind, settings=step.settings, section=section
    )


def _of_records(run: RunFolder) -> Iterator[Link]:
    """Links of a run of `compress distill`, or of one whose recipe cannot be read."""
    for name, record, inputs in (
        ("world", "world.json", {}),
        ("data", "index.json", {}),
        ("teacher-init", "init.json", {"tokenizer": _unknown}),
        ("teacher", RECORD, _training(run, "teacher", None)),
        ("student-init", "prune.json", {"teacher": lambda: model_fingerprint(run.teacher())}),
        ("student", RECORD, _training(run, "student", run.teacher)),
    ):
        if (run.path / name / record).is_file() or name in ("data", "student"):
            yield Link(name=name, record=(run.data if name == "data" else run.path / name) / record, inputs=inputs)


def _unknown() -> Any:
    raise Missing("the recipe, which says where it lies, is not there")


def _training(run: RunFolder, name: str, teacher: Callable[[], Path] | None) -> Inputs:
    out = run.path / name
    return training_inputs(
        lambda: run.start_of(out), teacher, lambda: run.store, lambda: run.cache_of(out), run.others_of(out)
    )


def _of_evaluation(run: RunFolder, path: Path) -> Link:
    """The link of an evaluation that no step of a recipe made."""

    def text() -> dict[str, Any]:
        if "store" not in typed(read_record(path).inputs["text"], dict, f"{path}: manifest.inputs.text"):
            raise Missing("it was measured on a text of its own")
        return text_fingerprint(run.store.path)

    inputs: dict[str, Callable[[], Any]] = {
        "model": lambda: model_fingerprint(run.measured(path.stem)),
        "teacher": lambda: model_fingerprint(run.teacher()),
        "text": text,
        "benchmarks": _unknown,
    }
    if path.stem in ("speed", EXPORT_SPEED):
        timed = read_record(path).inputs
        inputs = {stem: lambda stem=stem: model_fingerprint(run.measured(stem)) for stem in timed}  # type: ignore[misc]
    return Link(name=f"eval/{path.stem}", record=path, inputs=inputs)
