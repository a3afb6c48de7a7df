"""Kill runs of a small recipe at random until each completes, and compare them with one to which nothing happened.

    python tests/soak.py --kills 200 [--seed S] [--jobs 1] [--fresh-processes]

Every process is `compress run RECIPE`. It gets SIGKILL or SIGTERM at a random time, or soon after the run shows a phase
chosen at random. A finished run must have the same weights, metrics, scores and token store, to the bit; its rows must
be those of the data's order, each as often as it should. Exit status 1 if anything differs or a process misbehaves.
"""

import argparse
import contextlib
import dataclasses
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from commands import Commands, Outcome, serve
from run_world import SMALL_STEPS, differences, lasting, rows_out_of_order, write_recipe

MOST_KILLS_OF_A_RUN = 20
PATIENCE_S = 300.0
"""A process that does not end so long after SIGTERM, or at all, hangs."""


class Moment:
    """What a running `compress run` is doing, by what it has said and what it has touched since it started."""

    PHASES = (
        "starting", "pruning", "preparing data", "loading models", "training", "in a save", "publishing",
        "evaluation", "report",
    )  # fmt: skip

    def __init__(self, run: Path, said: Path) -> None:
        self._run, self._said, self._started = run, said, time.time()

    def phase(self) -> str:
        """One of `PHASES`."""
        said = self._said.read_text(errors="replace") if self._said.exists() else ""
        if "eval student: " in said and (self._touched("eval/speed.json") or "speed: done" in said):
            return "report"
        if "eval teacher: " in said:
            return "evaluation"
        if "distill: " in said:
            return self._training()
        if self._touched("data.partial"):
            return "preparing data"
        return "pruning" if self._touched("student-init.compress-partial") else "starting"

    def _training(self) -> str:
        if self._touched("student.compress-partial"):
            return "publishing"
        if any(map(self._is_new, self._run.glob("train/checkpoints/*.partial"))):
            return "in a save"
        return "training" if self._touched("train/metrics.jsonl") else "loading models"

    def _touched(self, name: str) -> bool:
        return self._is_new(self._run / name)

    def _is_new(self, path: Path) -> bool:
        try:
            return path.stat().st_mtime > self._started
        except OSError:
            return False


@dataclasses.dataclass
class Tally:
    """What happened so far, over all runs."""

    kills: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    """By signal and phase."""
    exits: Counter[int] = dataclasses.field(default_factory=Counter)
    """Exit statuses after SIGTERM."""
    runs: int = 0
    rows: int = 0
    longest_s: float = 0.0
    """From SIGTERM to the end of the process."""
    faults: list[str] = dataclasses.field(default_factory=list)

    def __iadd__(self, other: "Tally") -> "Tally":
        self.kills += other.kills
        self.exits += other.exits
        self.runs, self.rows = self.runs + other.runs, self.rows + other.rows
        self.longest_s = max(self.longest_s, other.longest_s)
        self.faults += other.faults
        return self

    def describe(self, seconds: float) -> str:
        """The figures, a line each."""
        lines = [f"{'killed in':<16}{'SIGKILL':>9}{'SIGTERM':>9}"]
        lines += [f"{p:<16}{self.kills['SIGKILL', p]:>9}{self.kills['SIGTERM', p]:>9}" for p in Moment.PHASES]
        kinds = [sum(n for (kind, _), n in self.kills.items() if kind == name) for name in ("SIGKILL", "SIGTERM")]
        lines.append(f"{'all':<16}{kinds[0]:>9}{kinds[1]:>9}")
        statuses = ", ".join(f"{status}: {count}" for status, count in sorted(self.exits.items()))
        lines.append(f"{sum(kinds)} kills over {self.runs} finished runs in {seconds / 60:.1f} minutes")
        lines.append(f"exit statuses after SIGTERM: {statuses}; longest time to exit {self.longest_s:.2f} s")
        lines.append(f"{self.rows} rows read by finished runs, compared in order; {len(self.faults)} mismatches")
        return "\n".join([*lines, *self.faults])


class Soak:
    """One line of runs, one process at a time."""

    def __init__(
        self, commands: Commands, stage: str, recipe: Path, whole: Path, seconds: float, rng: random.Random
    ) -> None:
        self._commands, self._stage, self._recipe, self._seconds, self._rng = commands, stage, recipe, seconds, rng
        self._expected, self._folder = lasting(whole), commands.folder
        self.tally = Tally()

    def go_on_until(self, kills: int) -> Tally:
        """Finish runs until so many kills have been counted."""
        while sum(self.tally.kills.values()) < kills and not self.tally.faults:
            run = self._folder / f"run-{self.tally.runs}"
            killed = 0
            while True:
                spare = killed >= MOST_KILLS_OF_A_RUN or sum(self.tally.kills.values()) >= kills
                outcome = self._process(run, spare=spare)
                if outcome is None:
                    killed += 1
                    continue
                if outcome.returncode != 0:
                    self.tally.faults.append(f"{run} ended with {outcome.returncode}: {outcome.stderr[-3000:]}")
                    return self.tally
                break
            self.tally.runs += 1
            self._compare(run)
        return self.tally

    def _process(self, run: Path, *, spare: bool) -> Outcome | None:
        """Start a process on the run and perhaps kill it; None if it was killed, else what came of it."""
        process = self._commands.start(SMALL_STEPS, "run", str(self._recipe), "--out", str(run), stage=self._stage)
        moment = Moment(run, process.stderr)
        with ThreadPoolExecutor(1) as pool:
            ended = pool.submit(process.wait)
            if spare or not self._wait_for_a_moment(moment, ended):
                return ended.result(PATIENCE_S)
            return self._kill(process.pid, moment, ended)

    def _wait_for_a_moment(self, moment: Moment, ended: "Future[Outcome]") -> bool:
        """Whether the time to kill came before the end of the process."""
        target = self._rng.choice(Moment.PHASES) if self._rng.random() < 0.6 else None
        latest = time.monotonic() + self._rng.uniform(0, 0.7 * self._seconds)
        while time.monotonic() < latest and moment.phase() != target:
            if ended.done():
                return False
            time.sleep(0.005)
        time.sleep(self._rng.uniform(0, 0.02))
        return not ended.done()

    def _kill(self, pid: int, moment: Moment, ended: "Future[Outcome]") -> Outcome | None:
        name = self._rng.choice(["SIGKILL", "SIGTERM"])
        phase, sent = moment.phase(), time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, getattr(signal, name))
        try:
            outcome = ended.result(PATIENCE_S)
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            self.tally.faults.append(f"no end {PATIENCE_S} s after {name} in the phase {phase!r}")
            return ended.result()
        if outcome.returncode == 0:
            return outcome
        if name == "SIGTERM":
            self.tally.exits[outcome.returncode] += 1
            self.tally.longest_s = max(self.tally.longest_s, outcome.ended - sent)
        # Before the command has set its handlers, SIGTERM ends a process as it ends any other.
        allowed = {"SIGKILL": [-9], "SIGTERM": [75] + [-15] * (phase == "starting")}[name]
        if outcome.returncode not in allowed or "Traceback" in outcome.stderr:
            self.tally.faults.append(f"{name} in the phase {phase!r}: {outcome.returncode}, {outcome.stderr[-3000:]}")
        self.tally.kills[name, phase] += 1
        return None

    def _compare(self, run: Path) -> None:
        self.tally.faults += [f"{run}: {difference}" for difference in differences(lasting(run), self._expected)]
        rows, faults = rows_out_of_order(run)
        self.tally.rows += rows
        self.tally.faults += [f"{run}: {fault}" for fault in faults]
        if not self.tally.faults:
            shutil.rmtree(run)


def soak(folder: Path, *, kills: int, seed: int, jobs: int, fresh: bool) -> Tally:
    """Make the recipe and its uninterrupted run in `folder`, and kill runs of it."""
    recipe, whole = write_recipe(folder), folder / "whole"
    stage = "nothing" if fresh else "all"
    with contextlib.ExitStack() as stack:
        commands = [Commands(folder / f"job-{job}", serve()) for job in range(jobs)]
        for one in commands:
            stack.callback(one.close)
        for out in (folder / "first", whole):  # the first one compiles
            started = time.monotonic()
            done = commands[0].run(SMALL_STEPS, "run", str(recipe), "--out", str(out), stage=stage)
            if done.returncode != 0:
                raise SystemExit(f"The uninterrupted run failed: {done.stderr}")
            seconds = time.monotonic() - started
        sys.stdout.write(f"seed {seed}; the uninterrupted run took {seconds:.1f} s\n")
        sys.stdout.flush()
        soaks = [Soak(c, stage, recipe, whole, seconds, random.Random(seed * 1000 + i)) for i, c in enumerate(commands)]
        total = Tally()
        with ThreadPoolExecutor(jobs) as pool:
            for tally in pool.map(lambda one: one.go_on_until(-(-kills // jobs)), soaks):
                total += tally
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="kills to reach")
    parser.add_argument("--seed", type=int, default=None, help="of the moments and signals; random when absent")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--fresh-processes", action="store_true", help="import everything anew for each: slow")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    started = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        tally = soak(Path(folder), kills=options.kills, seed=seed, jobs=options.jobs, fresh=options.fresh_processes)
        sys.stdout.write(tally.describe(time.monotonic() - started) + "\n")
    sys.exit(1 if tally.faults else 0)


if __name__ == "__main__":
    main()
