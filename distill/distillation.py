"""`distill`: from checked inputs to a published student; the loop between them is `compress.distill.loop.train`."""

import contextlib
import functools
import os
from pathlib import Path
from typing import Any

from compress.base.config import build_from, to_dict
from compress.base.disk import owned
from compress.base.errors import UsageError
from compress.base.machine import default_device
from compress.base.processes import count, join, on_main
from compress.base.progress import say, working
from compress.distill.config import DistillConfig
from compress.distill.fit import check_fit
from compress.distill.loop.meters import MemoryMeter
from compress.distill.loop.session import Session, fingerprints, open_session
from compress.distill.loop.train import mfu, train
from compress.distill.plan import DistillPlan, plan_distill
from compress.distill.preflight import check_start
from compress.distill.publish import DistillResult, finished, publish
from compress.distill.resources.auto import saved_dtype
from compress.distill.resources.switches import in_one_order, tuned
from compress.distill.rows.scoring import selection_for
from compress.distill.teachers.cache import TeacherCache
from compress.distill.teachers.cached import check_cache
from compress.model.facts import kept_layers
from compress.model.load import load_config


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
    from compress.data import TokenStore, check_framing, facts_of_store

    config = build_from(DistillConfig, to_dict(config), "distill")
    join()
    store = TokenStore.open(data)
    text = facts_of_store(store)
    signals = None if cache is None else TeacherCache.open(cache)
    kind = None if signals is None else signals.kind
    start, source = on_main(
        lambda: check_start(config, student=student, teacher=teacher, out=out, text=text, cached=kind)
    )
    inputs = on_main(lambda: fingerprints(start, source, store, signals))
    if signals is not None:
        apart = config.document_mask or store.apart
        check_cache(signals, config, teacher=inputs["teacher"], data=inputs["data"], apart=apart)
    if (done := on_main(lambda: finished(out, config, inputs))) is not None:
        return done
    with contextlib.ExitStack() as resources:
        on_main(lambda: resources.enter_context(_work_folder(work)))
        if source is not None and not any((work / "checkpoints").glob("step-*")):
            on_main(lambda: check_framing(store, source))
        resources.enter_context(tuned(config))
        resources.enter_context(in_one_order(config))
        with working("planning the memory"):
            plan, meter = _plan(config, start, source, store, cached=cache is not None)
        if not config.is_whole:
            how = f"train: {config.train}" if config.lora is None else f"lora, r = {config.lora.r}"
            say(f"{plan.trained_text()} parameters are trained ({how}).")
        selection = selection_for(config, store, student=start, teacher=source, inputs=inputs)

        def trained() -> DistillResult:
            with working("opening the models"):
                session = open_session(
                    config,
                    student=start,
                    teacher=source,
                    store=store,
                    cache=signals,
                    selection=selection,
                    inputs=inputs,
                    work=work,
                )
            meter.restart()
            train(session, work)
            facts = _facts(session, str(student), None if teacher is None else str(teacher))
            facts |= {"memory_plan": plan.memory_bytes, "peak_memory": meter.peak()}
            facts |= {"parameters": plan.parameters, "trained_parameters": plan.trained_parameters}
            return _publish(session, facts, out, start)

        return trained()


def _plan(
    config: DistillConfig, student: Path, teacher: Path | None, store: Any, *, cached: bool
) -> tuple[DistillPlan, MemoryMeter]:
    """What the run needs, checked against the device, and a meter that knows what the process holds before it."""
    device = default_device()
    plan = functools.partial(
        plan_distill,
        student=load_config(student),
        teacher=None if teacher is None else load_config(teacher),
        num_rows=store.num_rows,
        seq_len=store.seq_len,
        device=device,
        processes=count(),
        kept=kept_layers(student),
        cached=cached,
    )
    return check_fit(config, plan, device), MemoryMeter(device)


def _work_folder(work: Path) -> contextlib.AbstractContextManager[None]:
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"The work folder {work} cannot be made: {error}.") from error
    if not os.access(work, os.W_OK | os.X_OK):
        raise UsageError(f"The work folder {work} cannot be written; name another, or change its permissions.")
    return owned(work)


def _facts(s: Session, student: str, teacher: str | None) -> dict[str, Any]:
    """The fields of distill.json that the run knows."""
    run = s.progress
    rate = s.learned_tokens / max(run.seconds, 1e-9)
    return {
        "teacher": teacher,
        "student": student,
        "tokens": s.tokens,
        "steps": run.step,
        **run.heldout(),
        "heldout_documents": s.rows.heldout_documents(),
        "skipped_steps": run.skipped_steps,
        **s.notes,
        "tokens_per_s": round(rate, 1),
        "seconds": round(run.seconds, 3),
        "flops": s.learned_tokens * s.flops_per_token,
        "mfu": mfu(s, rate),
        "peak_flops": s.peak._asdict(),
        "on_policy": None if run.rollouts is None else run.rollouts.describe(s.learned_tokens, run.seconds),
    }


def _publish(s: Session, facts: dict[str, Any], out: Path, start: Path) -> DistillResult:
    student = s.student.finished(saved_dtype(s.config, start))
    with working(f"writing {out}"):
        return on_main(lambda: publish(out, student, start, s.config, s.inputs, facts))
