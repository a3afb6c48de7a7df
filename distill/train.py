"""The training loop: `distill`."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.artifacts import owned
from compress.config import build_from, to_dict
from compress.data import order
from compress.distill.checkpoint import Checkpointer
from compress.distill.config import DistillConfig
from compress.distill.fit import check_fit
from compress.distill.guard import StepGuard, tell_skips
from compress.distill.kernels import cpu
from compress.distill.meters import Clock, MemoryMeter, step_seed
from compress.distill.metrics import Metrics
from compress.distill.plan import DistillPlan, plan_distill
from compress.distill.publish import DistillResult, as_json, finished, publish, saved_dtype
from compress.distill.read_ahead import read_ahead
from compress.distill.schedule import is_due, learning_rate
from compress.distill.session import Session, fingerprints, open_session
from compress.distill.sharding import clip_gradients, whole_model
from compress.distill.start_up import check_start
from compress.distill.step import Batch
from compress.distill.stop_vote import StopVote
from compress.errors import InterruptedRun, UsageError
from compress.models import load_config
from compress.processes import count, join, on_main
from compress.progress import progress_bar, say
from compress.runtime import default_device, fast_fp32_products, keep_freed_memory, peak_memory_gib, stop_on_signal

RowIds = NDArray[np.int64]


def distill(
    config: DistillConfig, *, student: str | Path, teacher: str | Path | None, data: Path, out: Path, work: Path
) -> DistillResult:
    """Train `student` against `teacher` on a token store, and write it to `out` as a Hugging Face checkpoint.

    Called again after a stop or a kill, it continues from the last checkpoint, bitwise as if it had not stopped (same
    machine, same number of processes); called again when finished, it returns the result at once.

    Args:
        config: the options.
        student: folder or hub id of the model to train.
        teacher: folder or hub id of the model to learn from; None only with `alpha=0`.
        data: folder of a token store made with the student's tokenizer.
        out: folder of the final checkpoint, e.g. RUN/student; must not hold anything else.
        work: folder of metrics.jsonl and checkpoints/, e.g. RUN/train.

    Raises:
        UsageError: options out of range or unlike those of the checkpoint it would continue; an output that is not
            free; more tokens than the store has; no teacher at `alpha` above 0. All before the first step.
        InputError: a model, tokenizer or store that cannot be used, or that do not belong together.
        InterruptedRun: SIGINT or SIGTERM came; a checkpoint was saved.
        CompressError: too many steps in a row were not finite, or a checkpoint could not be written.
    """
    from compress.data import TokenStore

    config = build_from(DistillConfig, to_dict(config), "distill")
    join()
    start, source = on_main(lambda: check_start(config, student=student, teacher=teacher, out=out))
    store = TokenStore.open(data)
    inputs = on_main(lambda: fingerprints(start, source, store))
    if (done := on_main(lambda: finished(out, config, inputs))) is not None:
        return done
    with contextlib.ExitStack() as resources:
        on_main(lambda: resources.enter_context(_work_folder(work)))
        resources.enter_context(_tuned(config))
        plan, meter = _plan(config, start, source, store)
        session = open_session(config, student=start, teacher=source, store=store, inputs=inputs, work=work)
        meter.restart()
        _train(session, config, inputs, work)
        facts = _facts(session, config, str(student), None if teacher is None else str(teacher))
        facts |= {"memory_plan": plan.memory_bytes, "peak_memory": meter.peak()}
        return _publish(session, config, inputs, facts, out, start)


def _plan(config: DistillConfig, student: Path, teacher: Path | None, store: Any) -> tuple[DistillPlan, MemoryMeter]:
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
    )
    return check_fit(config, plan, device), MemoryMeter(device)


def _train(session: Session, config: DistillConfig, inputs: dict[str, Any], work: Path) -> None:
    """Run the steps that are left; `session.progress` says how far it came."""
    s, run, steps = session, session.progress, session.budget.steps
    guard = StepGuard(
        config,
        s.accelerator.device,
        total=run.skipped_steps,
        in_a_row=run.skipped_in_a_row,
        recent=run.recent_losses,
    )
    clock, vote = Clock(run.seconds, run.position * s.store.seq_len), StopVote(s.accelerator)
    with (
        stop_on_signal() as stop,
        contextlib.closing(read_ahead(_reads(s, config))) as batches,
        Metrics(work / "metrics.jsonl", s.accelerator, done=run.step) as metrics,
        Checkpointer(
            work / "checkpoints", keep=config.keep_checkpoints, background=config.async_checkpoints, done=run.step
        ) as checkpoints,
        progress_bar("distill", steps, done=run.step) as bar,
    ):
        if run.step == 0 or (run.heldout_loss is None and _measured_after(config, run.step, steps)):
            _measure_heldout(s, config, metrics)  # of a run that was stopped: now, what it had no time for
        for step, (row_ids, batch) in enumerate(batches, run.step):
            torch.manual_seed(step_seed(config.seed, step, s.accelerator.process_index))
            losses = s.losses.backward(batch)
            grad_norm = clip_gradients(s.accelerator, s.model, config.clip_norm)

            s.optimizer.step(learning_rate(config, step, steps), skip=guard.note(step, losses, grad_norm))
            s.optimizer.zero_grad()
            run.step, run.position, run.heldout_loss = step + 1, run.position + batch.num_rows, None
            run.rows_sha256 = order.extend(run.rows_sha256, row_ids)

            note = None
            if run.step % config.log_every == 0 or run.step == steps:
                note = _log(s, config, metrics, clock, losses, grad_norm, _count_skips(s, config, guard))
            bar.advance(1, note)

            stopping = vote.agreed(stop) and run.step < steps
            save = stopping or is_due(config.checkpoint_every, run.step, steps)
            if not stopping and _measured_after(config, run.step, steps):
                with clock.paused(s.accelerator.device):
                    _measure_heldout(s, config, metrics)
            if save:
                with clock.paused(s.accelerator.device):
                    _count_skips(s, config, guard)
                    run.recent_losses, run.seconds = guard.recent(), clock.seconds()
                    metrics.sync()
                    state = {**dataclasses.asdict(run), "config": as_json(config), "inputs": inputs}
                    path = checkpoints.save(state, s.student, s.optimizer)
                if stopping:
                    checkpoints.wait()
                    raise InterruptedRun(
                        f"Stopped by {stop.signal_name or 'a signal'} after step {run.step} of {steps}; all is in "
                        f"{path}. Run the same command again to continue."
                    )


def _reads(s: Session, config: DistillConfig) -> Iterator[Callable[[], tuple[RowIds, Batch]]]:
    """For each step that is left, a function that reads its rows and makes tensors of them."""

    def read(position: int) -> tuple[RowIds, Batch]:
        row_ids = _row_ids(s, config, position)
        return row_ids, s.losses.batch(s.store.rows(row_ids))

    for position in range(s.progress.position, s.budget.rows, s.budget.rows_per_step):
        yield functools.partial(read, position)


def _row_ids(s: Session, config: DistillConfig, position: int) -> RowIds:
    """Which rows of the store the step reads that begins after `position` rows."""
    count = min(s.budget.rows_per_step, s.budget.rows - position)
    ids: RowIds = s.store.row_ids(position, count, seed=config.seed, epochs=config.epochs)
    return ids


def _count_skips(s: Session, config: DistillConfig, guard: StepGuard) -> int:
    """Put the number of skipped steps into the run's progress, and tell of them; raises as `tell_skips`."""
    skips, run = guard.read(), s.progress
    before, run.skipped_steps, run.skipped_in_a_row = run.skipped_steps, skips.total, skips.in_a_row

    def rows_of(step: int) -> list[int]:
        ids: list[int] = _row_ids(s, config, step * s.budget.rows_per_step).tolist()
        return ids

    tell_skips(skips, before, config, rows_of)
    return skips.total


def _log(
    s: Session,
    config: DistillConfig,
    metrics: Metrics,
    clock: Clock,
    losses: Tensor,
    grad_norm: Tensor,
    skipped: int,
) -> str:
    """Write the step's row of metrics; returns the note for the progress bar."""
    soft, hard, norm = torch.cat([losses, grad_norm[None].to(losses)]).tolist()
    loss = config.alpha * soft + (1 - config.alpha) * hard
    tokens = s.progress.position * s.store.seq_len
    rate = clock.tokens_per_s(tokens)
    metrics.write(
        {
            "step": s.progress.step,
            "tokens": tokens,
            "loss": loss,
            "soft": soft if s.has_teacher else None,
            "hard": hard,
            "lr": float(s.optimizer.param_groups[0]["lr"]),
            "grad_norm": norm,
            "tokens_per_s": round(rate, 1),
            "mfu": _mfu(s, rate),
            "peak_gib": round(peak_memory_gib(), 3),
            "skipped": skipped,
            "rows_sha256": s.progress.rows_sha256,
        }
    )
    return f"loss {loss:.3f}, {rate:,.0f} tokens/s"


def _measured_after(config: DistillConfig, step: int, steps: int) -> bool:
    """Whether the held-out loss is measured after a step: before each regular save, and in between."""
    return is_due(config.checkpoint_every, step, steps) or is_due(config.heldout_every, step, steps)


def _measure_heldout(s: Session, config: DistillConfig, metrics: Metrics) -> None:
    """Measure and log the held-out loss of the student as it is."""
    if not len(s.heldout):
        return
    soft, hard = s.losses.measure(s.losses.batch(s.heldout))
    loss = config.alpha * soft + (1 - config.alpha) * hard
    run = s.progress
    run.heldout_loss = loss
    run.best_heldout_loss = loss if run.best_heldout_loss is None else min(loss, run.best_heldout_loss)
    metrics.write(
        {
            "step": run.step,
            "tokens": run.position * s.store.seq_len,
            "heldout_loss": loss,
            "heldout_soft": soft if s.has_teacher else None,
            "heldout_hard": hard,
        }
    )


def _work_folder(work: Path) -> contextlib.AbstractContextManager[None]:
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"The work folder {work} cannot be made: {error}.") from error
    if not os.access(work, os.W_OK | os.X_OK):
        raise UsageError(f"The work folder {work} cannot be written; name another, or change its permissions.")
    return owned(work)


def _mfu(s: Session, tokens_per_s: float) -> float:
    processes: int = s.accelerator.num_processes
    return tokens_per_s * s.flops_per_token / (s.peak.flops_per_s * processes)


@contextlib.contextmanager
def _tuned(config: DistillConfig) -> Iterator[None]:
    """Set the CPU's switches while training runs on it; the note says which."""
    if not config.cpu_tuning or torch.accelerator.is_available():
        yield
        return
    with fast_fp32_products() as fast:
        kept = keep_freed_memory()
        compiled = config.fused_loss and cpu.available()
        products = "through oneDNN (measured exact)" if fast else "as torch makes them"
        say(
            f"CPU tuning: fp32 products {products}, freed memory {'kept by the process' if kept else 'as it was'} "
            f"(cpu_tuning: false turns both off), the loss's pass over the logits in "
            f"{'C++ (fused_loss: false turns it off)' if compiled else 'torch'}."
        )
        yield


def _facts(s: Session, config: DistillConfig, student: str, teacher: str | None) -> dict[str, Any]:
    """The fields of distill.json that the run knows."""
    run = s.progress
    tokens = run.position * s.store.seq_len
    rate = tokens / max(run.seconds, 1e-9)
    return {
        "teacher": teacher,
        "student": student,
        "tokens": tokens,
        "steps": run.step,
        "heldout_loss": run.heldout_loss,
        "best_heldout_loss": run.best_heldout_loss,
        "skipped_steps": run.skipped_steps,
        **{name: s.notes[name] for name in ("teacher_kl", "processes", "shard")},
        "tokens_per_s": round(rate, 1),
        "seconds": round(run.seconds, 3),
        "flops": tokens * s.flops_per_token,
        "mfu": _mfu(s, rate),
        "peak_flops": s.peak._asdict(),
    }


def _publish(
    s: Session, config: DistillConfig, inputs: dict[str, Any], facts: dict[str, Any], out: Path, start: Path
) -> DistillResult:
    student = whole_model(s.student, saved_dtype(config, start))
    return on_main(lambda: publish(out, student, start, config, inputs, facts))
