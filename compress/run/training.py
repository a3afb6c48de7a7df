"""The training of a model as a step: what it is made from, and how it is made."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from compress.base.config import to_dict
from compress.base.currency import Inputs
from compress.base.disk import sha256_json
from compress.base.progress import say
from compress.data import TokenStore
from compress.distill import DistillConfig, begun_otherwise, student_output, training_output
from compress.distill.asked import Training
from compress.distill.distillation import distill_alone
from compress.distill.loop.ability import until_of
from compress.distill.teachers.cache import TeacherCache
from compress.distill.teachers.several import other_inputs
from compress.evaluate import AbilityTest
from compress.model.files import model_fingerprint
from compress.run.finders import Folder, if_there, store_of
from compress.run.layout import Layout
from compress.run.steps import Step


def training_inputs(
    student: Folder,
    teacher: Folder | None,
    data: Callable[[], TokenStore],
    cache: Callable[[], Path | None] = lambda: None,
    others: Sequence[Folder] = (),
    ability: AbilityTest | None = None,
) -> Inputs:
    """What a training is made from; see `compress.distill.asked.fingerprints`."""

    def of_cache() -> str | None:
        folder = cache()
        return None if folder is None else TeacherCache.open(folder).fingerprint

    return {
        "student": lambda: sha256_json(model_fingerprint(student())),
        "teacher": lambda: None if teacher is None else sha256_json(model_fingerprint(teacher())),
        "data": lambda: data().fingerprint,
        "cache": lambda: if_there(of_cache),
        **other_inputs(others),
        **until_of(ability),
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
    others: Sequence[Folder] = (),
    ability: AbilityTest | None = None,
) -> Step:
    """The training of `student` into `out` on RUN/data, or another store; without `teacher`, on the text alone, and
    with a `cache` of it from that; `others` are the teachers of its mixture, `ability` what it is scored on."""
    store = store or (lambda: store_of(layout))
    work, inputs = layout.training(out), training_inputs(student, teacher, store, lambda: cache, others, ability)

    def asked() -> Training:
        source = None if teacher is None else teacher()
        paths: Any = {"student": student(), "teacher": source, "data": store().path, "cache": cache}
        return Training(config=config, out=out, work=work, ability=ability, **paths)

    def make() -> None:
        say(f"{name}: {student()} -> {out}")
        distill_alone(asked())

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
        training=asked,
        together=True,
        begun=lambda: begun_otherwise(work, config, inputs),
    )
