"""The training loop: `distill`."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.base.config import to_dict
from compress.base.errors import InterruptedRun
from compress.base.machine import peak_memory_gib
from compress.base.progress import progress_bar, say
from compress.base.signals import stop_on_signal
from compress.data.store import order
from compress.distill.config import DistillConfig
from compress.distill.loop.checkpoint import Checkpointer
from compress.distill.loop.guard import StepGuard, tell_skips
from compress.distill.loop.meters import Clock, step_seed
from compress.distill.loop.metrics import Metrics
from compress.distill.loop.session import Session
from compress.distill.loop.step import Batch
from compress.distill.loop.stop_vote import StopVote
from compress.distill.resources.schedule import is_due, learning_rate
from compress.distill.rows.read_ahead import read_ahead
from compress.distill.students.sharding import clip_gradients

RowIds = NDArray[np.int64]


def train(session: Session, config: DistillConfig, inputs: dict[str, Any], work: Path) -> None:
    """Run the steps that are left; `session.progress` says how far it came.

    Raises:
        InterruptedRun: SIGINT or SIGTERM came; a checkpoint was saved.
        CompressError: too many steps in a row were not finite, or a checkpoint could not be written.
    """
    s, run, steps = session, session.progress, session.budget.steps
    guard = StepGuard(
        config,
        s.accelerator.device,
        total=run.skipped_steps,
        in_a_row=run.skipped_in_a_row,
        recent=run.recent_losses,
    )
    clock, vote = Clock(run.seconds, run.position * s.store.seq_len), StopVote(s.accelerator)
    # of a run that was stopped: now, what it had no time for
    unmeasured = run.step == 0 or (run.heldout_loss is None and _measured_after(config, run.step, steps))
    with (
        stop_on_signal() as stop,
        contextlib.closing(read_ahead(_reads(s, config))) as batches,
        Metrics(work / "metrics.jsonl", s.accelerator, done=run.step, unmeasured=unmeasured) as metrics,
        Checkpointer(
            work / "checkpoints", keep=config.keep_checkpoints, background=config.async_checkpoints, done=run.step
        ) as checkpoints,
        progress_bar("distill", steps, done=run.step) as bar,
    ):
        if unmeasured:
            with clock.paused(s.accelerator.device):
                _measure_heldout(s, config, metrics)
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
                    state = {**dataclasses.asdict(run), "config": to_dict(config), "inputs": inputs}
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
            "mfu": mfu(s, rate),
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
    """Measure and log the held-out loss of the student as it is; one that is not finite counts as none."""
    if not len(s.heldout):
        return
    soft, hard = s.losses.measure(s.losses.batch(s.heldout))
    loss = config.alpha * soft + (1 - config.alpha) * hard
    run = s.progress
    if math.isfinite(loss):
        run.heldout_loss = loss
        run.best_heldout_loss = loss if run.best_heldout_loss is None else min(loss, run.best_heldout_loss)
    else:
        say(f"The held-out loss after step {run.step} is {loss}.")
    metrics.write(
        {
            "step": run.step,
            "tokens": run.position * s.store.seq_len,
            "heldout_loss": loss,
            "heldout_soft": soft if s.has_teacher else None,
            "heldout_hard": hard,
        }
    )


def mfu(s: Session, tokens_per_s: float) -> float:
    """Share of the peak FLOP/s of all its devices that a run uses at a rate of tokens."""
    processes: int = s.accelerator.num_processes
    return tokens_per_s * s.flops_per_token / (s.peak.flops_per_s * processes)
