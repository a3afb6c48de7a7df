"""`distill`: from checked inputs to a published student; the loop between them is `compress.distill.loop.train`."""

import contextlib
import functools
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.base.disk import owned, sha256_json
from compress.base.errors import CompressError, UsageError
from compress.base.machine import default_device, memory_of
from compress.base.processes import join, on_main
from compress.base.progress import say, working
from compress.distill.asked import Checked, Training
from compress.distill.config import DistillConfig
from compress.distill.loop.meters import MemoryMeter
from compress.distill.loop.session import Session
from compress.distill.loop.train import mfu, train
from compress.distill.opening import open_session
from compress.distill.publish import DistillResult, finished, publish
from compress.distill.resources.auto import saved_dtype
from compress.distill.resources.switches import in_one_order, tuned
from compress.distill.rows.selection import Selection
from compress.distill.teachers.shared import SharedTeacher
from compress.distill.teachers.source import OpenedTeacher
from compress.distill.together import alike, that_fit


def distill(
    config: DistillConfig,
    *,
    student: str | Path,
    teacher: str | Path | None,
    data: Path,
    out: Path,
    work: Path,
    cache: Path | None = None,
) -> DistillResult:
    """Train `student` against `teacher` on a token store, and write it to `out` as a Hugging Face checkpoint.

    Called again after a stop or a kill, it continues from the last checkpoint, bitwise as if it had not stopped (same
    machine, same number of processes; on GPUs with `deterministic`); called again when finished, it returns the result
    at once.

    Args:
        config: the options.
        student: folder or hub id of the model to train.
        teacher: folder or hub id of the model to learn from; None only with `alpha=0`.
        data: folder of a token store made with the student's tokenizer.
        out: folder of the final checkpoint, e.g. RUN/student; must not hold anything else.
        work: folder of metrics.jsonl and checkpoints/, e.g. RUN/train.
        cache: folder of a cache of the teacher's signals on `data`: the teacher itself is then not loaded.

    Raises:
        UsageError: options out of range or unlike those of the checkpoint it would continue; an output that is not
            free; more tokens than the store has; no teacher at `alpha` above 0. All before the first step.
        InputError: a model, tokenizer, store or cache that cannot be used, or that do not belong together.
        InterruptedRun: SIGINT or SIGTERM came; a checkpoint was saved.
        CompressError: too many steps in a row were not finite, or a checkpoint could not be written.
    """
    asked = Training(config=config, student=student, teacher=teacher, data=data, out=out, work=work, cache=cache)
    return distill_alone(asked)


def distill_alone(asked: Training) -> DistillResult:
    """`distill` by what it is asked for; raises as it."""
    (result,) = distill_together([asked])
    if isinstance(result, CompressError):
        raise result
    return result


def distill_together(trainings: Sequence[Training]) -> list[DistillResult | CompressError]:
    """Train several students side by side on one forward pass of their teacher, as `distill` trains each alone.

    They are of one group of `alike`. Each is the student that `distill` makes, bit for bit, and leaves and continues
    the same files; the teacher's FLOPs are counted with the first that is not finished yet.

    Returns:
        For each its result, or what ended it before its last step; the others go on.

    Raises:
        UsageError, InputError, InterruptedRun: as `distill`.
    """
    join()
    checked = [Checked.of(training) for training in trainings]
    results: dict[int, DistillResult | CompressError] = {}
    for number, each in enumerate(checked):
        if (done := on_main(lambda each=each: finished(each.asked.out, each.config, each.inputs))) is not None:  # type: ignore[misc]
            results[number] = done
    left = [number for number in range(len(checked)) if number not in results]
    if left:
        results |= zip(left, _trained([checked[number] for number in left]), strict=True)
    return [results[number] for number in range(len(checked))]


def groups_together(trainings: Sequence[Training], *, sharing: int = 1) -> list[list[int]]:
    """Numbers of the trainings in groups for `distill_together`: alike, and no more than this device has memory for,
    which so many processes are `sharing`.

    Raises:
        UsageError, InputError: as `distill`.
    """
    checked = [Checked.of(training) for training in trainings]
    inputs = [sha256_json({**each.inputs, "student": None, "vocabulary": each.vocabulary()}) for each in checked]
    free = memory_of(default_device()).free // sharing
    groups: list[list[int]] = []
    for group in alike([(each.config, known) for each, known in zip(checked, inputs, strict=True)]):
        plans = [checked[number].planner()(checked[number].config) for number in group]
        groups += [[group[place] for place in fits] for fits in that_fit(plans, checked[group[0]].signal_bytes(), free)]
    return groups


def _trained(left: Sequence[Checked]) -> list[DistillResult | CompressError]:
    """Those that are not finished, trained."""
    with contextlib.ExitStack() as resources:
        for each in left:
            on_main(lambda each=each: resources.enter_context(_work_folder(each.asked.work)))  # type: ignore[misc]
            on_main(each.check_framing)
        resources.enter_context(tuned(left[0].config))
        resources.enter_context(in_one_order(left[0].config))
        meter = MemoryMeter(default_device())
        for each in left:
            each.score_teacher()
        with working("planning the memory"):
            plans = [each.plan() for each in left]
        for each, plan in zip(left, plans, strict=True):
            if not each.config.is_whole:
                lora = each.config.lora
                how = f"train: {each.config.train}" if lora is None else f"lora, r = {lora.r}"
                say(f"{plan.trained_text()} parameters are trained ({how}).")

        def trained() -> list[DistillResult | CompressError]:  # a function, so that the models go before the switches
            selections = [each.selection() for each in left]
            with working("opening the models"):
                sessions, shared = _opened(left, selections)
            meter.restart()
            ends = train([(session, each.asked.work) for session, each in zip(sessions, left, strict=True)], shared)
            made: list[DistillResult | CompressError] = []
            for session, each, plan, end in zip(sessions, left, plans, ends, strict=True):
                facts = _facts(session, each, len(left))
                facts |= {"memory_plan": plan.memory_bytes, "peak_memory": meter.peak(), "mixture": each.mixture()}
                facts |= {"parameters": plan.parameters, "trained_parameters": plan.trained_parameters}
                made.append(end or _publish(session, facts, each))
            return made

        return trained()


def _opened(
    left: Sequence[Checked], selections: Sequence[Selection | None]
) -> tuple[list[Session], SharedTeacher | None]:
    """A session for each; with several, the teacher that the first has opened is all the others' too."""
    beside = functools.reduce(operator.or_, (each.needs() for each in left)) if len(left) > 1 else None
    sessions: list[Session] = []
    guide: OpenedTeacher | None = None
    for each, selection in zip(left, selections, strict=True):
        session = open_session(each, selection, guide=guide, beside=beside)
        guide = session.guide
        sessions.append(session)
    source = None if guide is None else guide.source
    return sessions, source if isinstance(source, SharedTeacher) else None


def _work_folder(work: Path) -> contextlib.AbstractContextManager[int]:
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"The work folder {work} cannot be made: {error}.") from error
    if not os.access(work, os.W_OK | os.X_OK):
        raise UsageError(f"The work folder {work} cannot be written; name another, or change its permissions.")
    return owned(work)


def _facts(s: Session, of: Checked, together: int) -> dict[str, Any]:
    """The fields of distill.json that the run knows."""
    run = s.progress
    rate = s.learned_tokens / max(run.seconds, 1e-9)
    return {
        "teacher": None if of.asked.teacher is None else str(of.asked.teacher),
        "student": str(of.asked.student),
        "tokens": s.tokens,
        "steps": run.step,
        **run.heldout(),
        "heldout_documents": s.rows.heldout_documents(),
        "skipped_steps": run.skipped_steps,
        **s.notes,
        "together": together,
        "reached": run.reached,
        "tokens_per_s": round(rate, 1),
        "seconds": round(run.seconds, 3),
        "flops": s.learned_tokens * s.flops_per_token,
        "mfu": mfu(s, rate),
        "peak_flops": s.peak._asdict(),
        "on_policy": None if run.rollouts is None else run.rollouts.describe(s.learned_tokens, run.seconds),
    }


def _publish(s: Session, facts: dict[str, Any], of: Checked) -> DistillResult:
    out, student = of.asked.out, s.student.finished(saved_dtype(s.config, of.start))
    with working(f"writing {out}"):
        return on_main(lambda: publish(out, student, of.start, s.config, s.inputs, facts))
