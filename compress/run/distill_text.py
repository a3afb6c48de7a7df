"""`compress distill`: one training, and the preparation of its text, in a run folder without a recipe."""

import contextlib
import dataclasses
import functools
from collections.abc import Collection
from pathlib import Path

from compress.base.disk import owned
from compress.base.errors import Faults, UsageError
from compress.base.outputs import require_outputs
from compress.base.processes import on_main
from compress.data import (
    TokenStore,
    check_data,
    facts_of_store,
    fit_rows,
    named_store,
    options_unlike,
    prepare,
    require_apart,
)
from compress.distill import DistillResult, distill
from compress.distill.preflight import check_start
from compress.distill.teachers.cache import TeacherCache
from compress.model.facts import look_at_config, look_at_model
from compress.model.files import local_model
from compress.model.vocabulary import same_tokens
from compress.run.layout import Layout
from compress.run.models import others
from compress.run.options import DistillOptions
from compress.run.preflight import run_output
from compress.run.recipe_steps import preparation
from compress.run.redo import made_otherwise
from compress.run.steps import states
from compress.run.training import training


def distill_text(
    options: DistillOptions,
    *,
    student: str,
    teacher: str | None,
    run: Path,
    given: Collection[str] = (),
    cache: Path | None = None,
) -> DistillResult:
    """`compress distill`: prepare the text in RUN/data (or take a token store as it is) and train RUN/student on it.

    Called again, it continues or returns the finished result. `given` names the data options that the user wrote down,
    which a token store must have been made with; `cache` is the folder of a cache of the teacher on that text.

    Raises:
        UsageError: a token store was made with others; and as `distill` and `prepare`.
    """
    with contextlib.ExitStack() as lock:
        on_main(lambda: require_outputs(run_output(run)))
        on_main(lambda: lock.enter_context(owned(run)))
        store = on_main(lambda: _store_of(options, given, student=student, teacher=teacher, run=run, cache=cache))
        out, work = run / "student", run / "train"
        return distill(options.distill, student=student, teacher=teacher, data=store, out=out, work=work, cache=cache)


def _store_of(
    options: DistillOptions,
    given: Collection[str],
    *,
    student: str,
    teacher: str | None,
    run: Path,
    cache: Path | None,
) -> Path:
    """The token store to train on, made if need be, once all that can be known of the training is."""
    layout, named, faults = Layout(run), named_store(options.data), Faults()
    if named is not None:
        faults.of(lambda: _check_options(named, options, given))
        store = faults.of(lambda: TokenStore.open(named))
        text = None if store is None else facts_of_store(store)
    else:
        for source in options.data.datasets:
            faults.of(functools.partial(require_apart, source, run))
        models = [None if name is None else look_at_config(name, Faults()) for name in (student, teacher)]
        options = dataclasses.replace(options, data=fit_rows(options.data, models))
        text = check_data(options.data, look_at_model(student, faults), layout.data, faults)
    current = functools.partial(_check_current, options, layout, named)
    faults.of(lambda: current(student=student, teacher=teacher, cache=cache))
    signals = None if cache is None else faults.of(lambda: TeacherCache.open(cache))
    kind = None if signals is None else signals.kind
    start = functools.partial(check_start, options.distill, out=layout.student, text=text, cached=kind)
    found = faults.of(lambda: start(student=student, teacher=teacher))
    faults.refuse()
    assert found is not None
    if named is not None:
        return named
    learner, guide, _ = found
    reads = guide is not None and same_tokens(learner, guide)
    prepare(options.data, learner, layout.data, reader=guide if reads else None)
    return layout.data


def _check_current(
    options: DistillOptions,
    layout: Layout,
    store: Path | None,
    *,
    student: str,
    teacher: str | None,
    cache: Path | None,
) -> None:
    """Refuse to go on with text, checkpoints or a student that were made otherwise.

    Raises:
        UsageError: which, what differs, what to do.
    """
    start = functools.partial(local_model, student, None)
    steps = [] if store else [preparation(options.data, layout, start)]
    opened = functools.partial(TokenStore.open, store) if store else None
    guide = None if teacher is None else functools.partial(local_model, teacher, None)
    heal = functools.partial(training, "distill", options.distill, layout, layout.student, start, guide)
    steps.append(heal(store=opened, cache=cache, others=others(options.distill, local_model)))
    require_outputs(*(output for step in steps for output in step.outputs if not step.only_reads(output)))
    found = states(steps)
    if refused := [step for step in steps if found[step.name][0] == "changed"]:
        raise UsageError(
            "\n".join(
                [
                    *(made_otherwise(step, found[step.name][1]) for step in refused),
                    "Nothing was changed. Go back to those settings, name another folder with --out, or move what is "
                    "there away.",
                ]
            )
        )


def _check_options(named: Path, options: DistillOptions, given: Collection[str]) -> None:
    of_training = {"tokens"} if options.data.tokens == options.distill.tokens else set()  # as --tokens sets both
    if differing := options_unlike(named, options.data, set(given) - of_training):
        raise UsageError(
            f"{named} is a token store, and was made with other options: {'; '.join(differing)}. Leave "
            "them out, or name the text, to prepare it with them."
        )
