"""The training loop of `distill`: of one student, or of several side by side."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.base.config import to_dict
from compress.base.errors import CompressError, InterruptedRun
from compress.base.machine import peak_memory_gib
from compress.base.progress import Bar, progress_bar, working
from compress.base.signals import StopRequest, stop_on_signal
from compress.distill.loop.checkpoint import Checkpointer
from compress.distill.loop.guard import StepGuard, tell_skips
from compress.distill.loop.heldout import measure_heldout
from compress.distill.loop.meters import Clock, step_seed
from compress.distill.loop.metrics import Metrics, step_columns
from compress.distill.loop.progress import Progress
from compress.distill.loop.session import Session
from compress.distill.loop.stop_vote import StopVote
from compress.distill.objective.objective import Term, Terms
from compress.distill.objective.schedules import on_own_text
from compress.distill.resources.flops import at_least
from compress.distill.resources.schedule import is_due, learning_rate
from compress.distill.rollouts.prompts import Prompts, is_on_policy, share_prompts
from compress.distill.rollouts.state import Counts
from compress.distill.rows.batch import Ids, Share
from compress.distill.rows.read_ahead import read_ahead
from compress.distill.students.sharding import clip_gradients
from compress.distill.teachers.shared import SharedTeacher


def train(sessions: Sequence[tuple[Session, Path]], shared: SharedTeacher | None = None) -> list[CompressError | None]:
    """Run the steps that are left; `session.progress` says how far each session came.

    Each has a folder for its metrics and checkpoints. Students that are trained side by side take their steps in turns,
    those that are behind first, and do what each would do alone; what their `shared` teacher said is forgotten after
    each round.

    Returns:
        What ended each training before its last step: too many steps in a row that were not finite, or a checkpoint
        that could not be written. The others go on. None where nothing did.

    Raises:
        InterruptedRun: SIGINT or SIGTERM came; checkpoints were saved.
    """
    label = "distill" if len(sessions) == 1 else f"distill {len(sessions)} students"
    total = sum(s.budget.rows * s.rows.seq_len for s, _ in sessions)
    with (
        stop_on_signal() as stop,
        progress_bar(label, total, unit="tokens", done=sum(s.tokens for s, _ in sessions)) as bar,
        contextlib.ExitStack() as closing,
    ):
        alone = len(sessions) == 1
        runs = [
            closing.enter_context(contextlib.closing(_steps(s, work, stop, bar, alone=alone))) for s, work in sessions
        ]
        ends: dict[int, CompressError | None] = {}
        while left := [number for number in range(len(runs)) if number not in ends]:
            behind = min(sessions[number][0].progress.step for number in left)
            for number in left:
                if sessions[number][0].progress.step == behind:
                    try:
                        next(runs[number])
                    except StopIteration:
                        ends[number] = None
                    except CompressError as error:
                        ends[number] = error
            if shared is not None:
                shared.forget()
        if stopped := [str(error) for error in ends.values() if isinstance(error, InterruptedRun)]:
            raise InterruptedRun("\n".join(stopped))
    return [ends[number] for number in range(len(runs))]


def _steps(session: Session, work: Path, stop: StopRequest, bar: Bar, *, alone: bool) -> Generator[None, None, None]:
    """One student's steps, with all that is measured and saved between them; others, if any, have their turn at each
    `yield`. Raises as `train`."""
    s, config, run, steps = session, session.config, session.progress, session.budget.steps
    advance = _Part(bar, s.tokens)
    guard = StepGuard(
        config,
        s.accelerator.device,
        total=run.skipped_steps,
        in_a_row=run.skipped_in_a_row,
        recent=run.recent_losses,
    )
    clock, vote = Clock(run.seconds, s.learned_tokens), StopVote(s.accelerator)
    # of a run that was stopped: now, what it had no time for
    unmeasured = run.step == 0 or (run.heldout_loss is None and run.step in s.measured)
    unscored = s.ability is not None and s.ability.is_due(run.step, steps) and run.scored != run.step
    again = [column for column, is_due_now in (("heldout_", unmeasured), ("score/", unscored)) if is_due_now]
    with (
        contextlib.closing(read_ahead(_reads(s))) as batches,
        Metrics(work / "metrics.jsonl", s.accelerator, done=run.step, again=again) as metrics,
        Checkpointer(
            work / "checkpoints", keep=config.keep_checkpoints, background=config.async_checkpoints, done=run.step
        ) as checkpoints,
    ):
        with clock.paused(s.accelerator.device):
            if unmeasured:
                measure_heldout(s, metrics)
            if unscored:
                _score(s, metrics)
        for step, (row_ids, batch) in enumerate(batches, run.step):
            torch.manual_seed(step_seed(config.seed, step, s.accelerator.process_index))
            setting, counts = s.setting(), None
            if isinstance(batch, Prompts):
                batch, counts = _written(s, batch)
                setting = on_own_text(setting)
            elif config.balance == "level" and not run.levels:
                run.levels = _levels(s, batch)
                setting = s.setting()
            terms = s.losses.backward(batch, setting, advance)
            grad_norm = clip_gradients(s.accelerator, s.model, config.clip_norm)

            s.optimizer.step(learning_rate(config, step, steps), skip=guard.note(step, terms, grad_norm))
            s.optimizer.zero_grad()
            run.advance(row_ids)
            if config.balance == "level":
                _note_levels(run, terms)

            stopping = vote.agreed(stop) and run.step < steps
            if not stopping and s.ability is not None and s.ability.is_due(run.step, steps):
                with clock.paused(s.accelerator.device):
                    _score(s, metrics)
            last = run.step == steps or run.reached

            note = None
            if run.step % config.log_every == 0 or last:
                note = _log(s, metrics, clock, terms, grad_norm, _count_skips(s, guard), counts)
            advance.to(s.tokens, note)

            save = stopping or last or is_due(config.checkpoint_every, run.step, steps)
            if not stopping and (last or run.step in s.measured):
                with clock.paused(s.accelerator.device):
                    measure_heldout(s, metrics)
            if save:
                with clock.paused(s.accelerator.device), working("writing a checkpoint"):
                    _count_skips(s, guard)
                    run.recent_losses, run.seconds = guard.recent(), clock.seconds()
                    metrics.sync()
                    state = {**dataclasses.asdict(run), "config": to_dict(config), "inputs": s.inputs}
                    path = checkpoints.save(state, s.student, s.optimizer)
                if stopping:
                    checkpoints.wait()
                    raise InterruptedRun(
                        f"Stopped by {stop.signal_name or 'a signal'} after step {run.step} of {steps}; all is in "
                        f"{path}. Run the same command again to continue."
                    )
            if run.reached:
                return
            if not alone:
                with clock.paused(s.accelerator.device):
                    yield


def _score(s: Session, metrics: Metrics) -> None:
    """Score the student as it is on the items of its tasks, log that, and note whether it is what was asked for."""
    assert s.ability is not None
    run = s.progress
    columns = s.ability.score(s.student.model, s.accelerator, run.step, s.tokens)
    metrics.write({"step": run.step, "tokens": s.tokens, **columns})
    run.scored, run.reached = run.step, s.ability.reached(run.step)
    s.ability.warn(metrics.heldout, run.best_by)


class _Part:
    """One student's part of a bar: tells it of tokens that are done."""

    def __init__(self, bar: Bar, done: int) -> None:
        self._bar, self._done = bar, done

    def __call__(self, count: int) -> None:
        """So many more."""
        self._done += count
        self._bar.advance(count)

    def to(self, done: int, note: str | None) -> None:
        """So many in all."""
        self._bar.advance(done - self._done, note)
        self._done = done


def _reads(s: Session) -> Iterator[Callable[[], tuple[Ids, Share | Prompts]]]:
    """For each step that is left, a function that reads its rows and makes tensors of them, or prompts."""
    options, processes, rank = s.config.on_policy, s.accelerator.num_processes, s.accelerator.process_index

    def read(step: int, position: int) -> tuple[Ids, Share | Prompts]:
        row_ids = _row_ids(s, position)
        batch = s.rows.read(row_ids, position)
        if options is not None and is_on_policy(options, s.config.seed, step):
            return row_ids, share_prompts(batch, options, processes=processes, rank=rank)
        return row_ids, s.losses.share(batch)

    if s.progress.reached:
        return
    for step, position in enumerate(range(s.progress.position, s.budget.rows, s.budget.rows_per_step), s.progress.step):
        yield functools.partial(read, step, position)


def _row_ids(s: Session, position: int) -> Ids:
    """Which rows the step reads that begins after `position` rows."""
    return s.rows.row_ids(position, min(s.budget.rows_per_step, s.budget.rows - position))


def _written(s: Session, prompts: Prompts) -> tuple[Share, Counts]:
    """What the student, as it is, writes after the prompts of the next step; it is counted in the run's progress."""
    run, options = s.progress, s.config.on_policy
    assert s.writer is not None
    assert run.rollouts is not None
    assert options is not None
    assert not isinstance(s.guide.source, SharedTeacher), "it knows rows by their ids, and these are written"
    written = s.writer(prompts, run.step, run.rollouts.limit)
    run.rollouts.note(written.counts, options, rows=prompts.rows_of_step, seconds=written.seconds)
    return written.share, written.counts


def _count_skips(s: Session, guard: StepGuard) -> int:
    """Put the number of skipped steps into the run's progress, and tell of them; raises as `tell_skips`."""
    skips, run = guard.read(), s.progress
    before, run.skipped_steps, run.skipped_in_a_row = run.skipped_steps, skips.total, skips.in_a_row

    def rows_of(step: int) -> list[int]:
        ids: list[int] = _row_ids(s, step * s.budget.rows_per_step).tolist()
        return ids

    tell_skips(skips, before, s.config, rows_of)
    return skips.total


def _levels(s: Session, batch: Share) -> dict[str, float]:
    """The terms of the first step, before it: without gradients."""
    found = s.losses.measure(batch, s.setting())
    return {name: found[name] for name in s.objective.names}


def _note_levels(run: Progress, terms: Terms) -> None:
    """Keep the terms of this step for the next one's weights, unless one is not finite; waits for the device."""
    values = torch.stack([term.raw for term in terms.values()]).tolist()
    if all(map(math.isfinite, values)):
        run.levels = dict(zip(terms, values, strict=True))


def _log(
    s: Session, metrics: Metrics, clock: Clock, terms: Terms, grad_norm: Tensor, skipped: int, own: Counts | None
) -> str:
    """Write the step's row of metrics, with those of its rollouts where it was on-policy; returns the note for the
    progress bar."""
    *raw, norm = torch.stack([*(term.raw for term in terms.values()), grad_norm.to(torch.float64)]).tolist()
    columns = step_columns({name: Term(value, terms[name].weight) for name, value in zip(terms, raw, strict=True)})
    rate = clock.tokens_per_s(s.learned_tokens)
    metrics.write(
        {
            "step": s.progress.step,
            "tokens": s.tokens,
            **columns,
            "lr": float(s.optimizer.param_groups[0]["lr"]),
            "grad_norm": norm,
            "tokens_per_s": round(rate, 1),
            "mfu": mfu(s, rate),
            "peak_gib": round(peak_memory_gib(), 3),
            "skipped": skipped,
            "rows_sha256": s.progress.rows_sha256,
            **_rollout_columns(s, clock, own),
        }
    )
    parts = ", ".join(f"{name} {value:.3f}" for name, value in zip(terms, raw, strict=True)) if len(terms) > 1 else ""
    loss = f"loss {columns['loss']:.3f}{parts and f' ({parts})'}"
    wrote = "" if own is None else f", on its own text ({own.tokens / max(own.rollouts, 1):.1f} tokens a rollout)"
    return f"step {s.progress.step} of {s.budget.steps}, {loss}{wrote}, {rate:,.0f} tokens/s{s.outlook}"


def _rollout_columns(s: Session, clock: Clock, counts: Counts | None) -> dict[str, Any]:
    """Columns of a run that has on-policy steps; of such a step what its rollouts came to."""
    own = s.progress.rollouts
    if own is None:
        return {}
    found: dict[str, Any] = {"on_policy": int(counts is not None)}
    if counts is not None:
        found |= {
            "rollouts": counts.rollouts,
            "rollout_tokens": counts.tokens,
            "rollout_limit": own.limit,
            "repetition": counts.repetition,
            "ended": counts.ended,
        }
    writing, learning = own.rates(s.learned_tokens, clock.seconds())
    return {**found, "writing_tokens_per_s": round(writing, 1), "learning_tokens_per_s": round(learning, 1)}


def mfu(s: Session, tokens_per_s: float) -> float:
    """Share of the peak FLOP/s of all its devices that a run uses at a rate of tokens, at most 1."""
    of_one: float = tokens_per_s * s.flops_per_token / s.accelerator.num_processes
    s.peak = at_least(s.peak, of_one, s.accelerator.device, s.notes["precision"])
    return of_one / s.peak.flops_per_s
