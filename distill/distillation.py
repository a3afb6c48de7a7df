"""`distill`: from checked inputs to a published student; the loop between them is `compress.distill.loop.train`."""

import contextlib
import dataclasses
import functools
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.base.config import build_from, to_dict
from compress.base.disk import owned, sha256_json
from compress.base.errors import CompressError, UsageError
from compress.base.machine import default_device, memory_of
from compress.base.processes import count, join, on_main
from compress.base.progress import say, working
from compress.distill.config import DistillConfig
from compress.distill.fit import Planner, check_fit
from compress.distill.loop.meters import MemoryMeter
from compress.distill.loop.session import Session, fingerprints, open_session
from compress.distill.loop.train import mfu, train
from compress.distill.objective.objective import make_objective
from compress.distill.objective.part import Pair
from compress.distill.objective.signals import Needs
from compress.distill.plan import DistillPlan, plan_distill
from compress.distill.preflight import check_start
from compress.distill.publish import DistillResult, finished, publish
from compress.distill.resources.auto import resolve_precision, saved_dtype
from compress.distill.resources.schedule import most_heldout_rows
from compress.distill.resources.switches import in_one_order, tuned
from compress.distill.rows.scoring import selection_for
from compress.distill.rows.selection import Selection
from compress.distill.teachers.cache import TeacherCache
from compress.distill.teachers.cached import check_cache
from compress.distill.teachers.shared import SharedTeacher
from compress.distill.teachers.source import OpenedTeacher
from compress.distill.together import alike, that_fit
from compress.model.facts import kept_layers
from compress.model.load import load_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """What `distill` is asked for."""

    config: DistillConfig
    student: str | Path
    teacher: str | Path | None
    data: Path
    out: Path
    work: Path
    cache: Path | None = None


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
    checked = [_Checked.of(training) for training in trainings]
    results: dict[int, DistillResult | CompressError] = {}
    for number, each in enumerate(checked):
        if (done := on_main(lambda each=each: finished(each.asked.out, each.config, each.inputs))) is not None:  # type: ignore[misc]
            results[number] = done
    left = [number for number in range(len(checked)) if number not in results]
    if left:
        results |= zip(left, _trained([checked[number] for number in left]), strict=True)
    return [results[number] for number in range(len(checked))]


def groups_together(trainings: Sequence[Training]) -> list[list[int]]:
    """Numbers of the trainings in groups for `distill_together`: alike, and no more than this device has memory for.

    Raises:
        UsageError, InputError: as `distill`.
    """
    checked = [_Checked.of(training) for training in trainings]
    inputs = [sha256_json({**each.inputs, "student": None}) for each in checked]
    free, _ = memory_of(default_device())
    groups: list[list[int]] = []
    for group in alike([(each.config, known) for each, known in zip(checked, inputs, strict=True)]):
        plans = [checked[number].planner()(checked[number].config) for number in group]
        groups += [[group[place] for place in fits] for fits in that_fit(plans, checked[group[0]].signal_bytes(), free)]
    return groups


def _trained(left: Sequence["_Checked"]) -> list[DistillResult | CompressError]:
    """Those that are not finished, trained."""
    with contextlib.ExitStack() as resources:
        for each in left:
            on_main(lambda each=each: resources.enter_context(_work_folder(each.asked.work)))  # type: ignore[misc]
            on_main(each.check_framing)
        resources.enter_context(tuned(left[0].config))
        resources.enter_context(in_one_order(left[0].config))
        meter = MemoryMeter(default_device())
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
                facts |= {"memory_plan": plan.memory_bytes, "peak_memory": meter.peak()}
                facts |= {"parameters": plan.parameters, "trained_parameters": plan.trained_parameters}
                made.append(end or _publish(session, facts, each))
            return made

        return trained()


def _opened(
    left: Sequence["_Checked"], selections: Sequence[Selection | None]
) -> tuple[list[Session], SharedTeacher | None]:
    """A session for each; with several, the teacher that the first has opened is all the others' too."""
    alone = len(left) == 1
    needs = functools.reduce(operator.or_, (each.needs() for each in left))
    sessions: list[Session] = []
    guide: OpenedTeacher | None = None
    for each, selection in zip(left, selections, strict=True):
        session = each.open(selection, guide, needs, together=not alone)
        guide = session.guide
        sessions.append(session)
    source = None if guide is None else guide.source
    return sessions, source if isinstance(source, SharedTeacher) else None


@dataclasses.dataclass(frozen=True)
class _Checked:
    """A training that nothing was found to refuse."""

    asked: Training
    config: DistillConfig
    start: Path
    """Folder of the student that it begins with."""
    teacher: Path | None
    store: Any
    cache: TeacherCache | None
    inputs: dict[str, Any]

    @classmethod
    def of(cls, asked: Training) -> "_Checked":
        """Raises as `distill`."""
        from compress.data import TokenStore, facts_of_store

        config = build_from(DistillConfig, to_dict(asked.config), "distill")
        store = TokenStore.open(asked.data)
        cache = None if asked.cache is None else TeacherCache.open(asked.cache)
        start, teacher = on_main(
            lambda: check_start(
                config,
                student=asked.student,
                teacher=asked.teacher,
                out=asked.out,
                text=facts_of_store(store),
                cached=None if cache is None else cache.kind,
            )
        )
        inputs = on_main(lambda: fingerprints(start, teacher, store, cache))
        if cache is not None:
            apart = config.document_mask or store.apart
            check_cache(cache, config, teacher=inputs["teacher"], data=inputs["data"], apart=apart)
        return cls(asked, config, start, teacher, store, cache, inputs)

    def check_framing(self) -> None:
        """That the text begins as the teacher reads it, unless the training has begun; raises as `distill`."""
        from compress.data import check_framing

        if self.teacher is not None and not any((self.asked.work / "checkpoints").glob("step-*")):
            check_framing(self.store, self.teacher)

    def signal_bytes(self) -> int:
        """The most that a teacher says of one round's rows: of a step's, and of those that are held out."""
        if self.teacher is None:
            return 0
        tokens = max(self.config.batch_tokens, most_heldout_rows(self.config) * self.store.seq_len)
        value = 2 if resolve_precision(self.config, default_device()) == "bf16" else 4
        width: int = load_config(self.teacher).get_text_config().hidden_size
        size: int = tokens * width * value
        return size

    def selection(self) -> Selection | None:
        """Of the text, what is learned from."""
        return selection_for(self.config, self.store, student=self.start, teacher=self.teacher, inputs=self.inputs)

    def needs(self) -> Needs:
        """Which of the teacher's signals its objective asks for."""
        guide = None if self.teacher is None else load_config(self.teacher)
        return make_objective(self.config, Pair(load_config(self.start), guide, kept_layers(self.start))).needs

    def open(
        self, selection: Selection | None, guide: OpenedTeacher | None, needs: Needs, *, together: bool
    ) -> Session:
        """Its session; raises as `distill`."""
        return open_session(
            self.config,
            student=self.start,
            teacher=self.teacher,
            store=self.store,
            cache=self.cache,
            selection=selection,
            inputs=self.inputs,
            work=self.asked.work,
            guide=guide,
            others=needs if together else None,
        )

    def plan(self) -> DistillPlan:
        """What it needs, checked against the device; raises as `distill`."""
        return check_fit(self.config, self.planner(), default_device())

    def planner(self) -> Planner:
        """What it needs with other options, unchecked."""
        return functools.partial(
            plan_distill,
            student=load_config(self.start),
            teacher=None if self.teacher is None else load_config(self.teacher),
            num_rows=self.store.num_rows,
            seq_len=self.store.seq_len,
            device=default_device(),
            processes=count(),
            kept=kept_layers(self.start),
            cached=self.cache is not None,
        )


def _work_folder(work: Path) -> contextlib.AbstractContextManager[None]:
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"The work folder {work} cannot be made: {error}.") from error
    if not os.access(work, os.W_OK | os.X_OK):
        raise UsageError(f"The work folder {work} cannot be written; name another, or change its permissions.")
    return owned(work)


def _facts(s: Session, of: _Checked, together: int) -> dict[str, Any]:
    """The fields of distill.json that the run knows."""
    run = s.progress
    rate = s.tokens / max(run.seconds, 1e-9)
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
        "tokens_per_s": round(rate, 1),
        "seconds": round(run.seconds, 3),
        "flops": s.tokens * s.flops_per_token,
        "mfu": mfu(s, rate),
        "peak_flops": s.peak._asdict(),
    }


def _publish(s: Session, facts: dict[str, Any], of: _Checked) -> DistillResult:
    out, student = of.asked.out, s.student.finished(saved_dtype(s.config, of.start))
    with working(f"writing {out}"):
        return on_main(lambda: publish(out, student, of.start, s.config, s.inputs, facts))
