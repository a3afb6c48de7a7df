"""The real command, stopped in every way at random moments: run again, it ends with the uninterrupted numbers."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Running, warm
from helpers import ROOT

from compress.base.disk import read_json
from compress.cli import cli

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]
STOPPED = "Stopped. Run the same command again to go on."


class Job:
    """One `compress eval` of everything but the speed, in many small batches."""

    def __init__(self, world: dict[str, Path], teacher: Path, out: Path) -> None:
        text = world["root"] / "acme" / "spans" / "validation.jsonl"
        settings = ["batch_tokens=50", "speed=false", "heldout_seq_len=50", "heldout_sequences=12", "sample_tokens=3"]
        self.out = out
        self.arguments = [
            *("eval", str(world["model"]), "--teacher", str(teacher), "--text", str(text), "--out", str(out)),
            *("--tasks", "quiz,quiz_again,quiz_sampled,quiz_class", "--datasets-root", str(world["root"])),
            *(f"--set=eval.{setting}" for setting in [*settings, "device=cpu", f"task_folder={world['tasks']}"]),
        ]

    def here(self) -> "Job":
        """Run it in this process."""
        cli(self.arguments, standalone_mode=False)
        return self

    def fork(self) -> Running:
        """Run it in a process of its own that need not import everything."""
        return warm().start((), *self.arguments, OMP_NUM_THREADS=str(torch.get_num_threads()))

    @contextlib.contextmanager
    def start(self, *launch: str) -> Iterator[subprocess.Popen[str]]:
        """Run it as a user does, in a process group of its own, with as many threads as this process has."""
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
        environment["CUDA_VISIBLE_DEVICES"] = ""
        command = [*launch, sys.executable, "-m", "compress.cli", *self.arguments]
        with subprocess.Popen(
            command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        ) as process:
            try:
                yield process
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def lines(self) -> int:
        """Finished batches in the journal."""
        files = self.out.with_name(f"{self.out.name}.journal").glob("*.jsonl")
        return sum(file.read_bytes().count(b"\n") for file in files)

    def wait_for(self, process: subprocess.Popen[str] | Running, lines: int) -> None:
        """Return when that many batches are finished, or the process is."""
        while process.poll() is None and self.lines() < lines:
            time.sleep(0.001)

    def numbers(self) -> tuple[dict[str, Any], str]:
        result = {key: value for key, value in read_json(self.out).items() if key not in ("seconds", "manifest")}
        return result, self.out.with_name(f"{self.out.stem}.items.jsonl").read_text()


@pytest.fixture
def rng() -> random.Random:
    seed = random.SystemRandom().randrange(2**32)
    sys.stdout.write(f"seed {seed}\n")
    return random.Random(seed)


def finish(process: subprocess.Popen[str] | Running, code: int) -> str:
    """The end of a process with this exit code: what it said, in one line."""
    error = process.communicate(timeout=300)[1]
    assert process.returncode == code, error
    assert "Traceback" not in error or code == -signal.SIGKILL, error
    return " ".join(error.split())


def test_killed_then_stopped_then_finished_by_two_processes(
    world: dict[str, Path], teacher: Path, tmp_path: Path, rng: random.Random
) -> None:
    whole, job = Job(world, teacher, tmp_path / "whole.json").here(), Job(world, teacher, tmp_path / "cut.json")
    process = job.fork()
    job.wait_for(process, rng.randrange(1, 80))
    process.kill()
    finish(process, -signal.SIGKILL)
    before = job.lines()
    process = job.fork()
    job.wait_for(process, before + rng.randrange(1, 60))
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    said = finish(process, 75)
    took = time.monotonic() - asked
    sys.stdout.write(f"killed after {before} batches, stopped after {job.lines()} in {took:.2f} s\n")
    assert said.endswith(STOPPED)
    assert f"{before} of" in said
    assert job.lines() > before
    assert not job.out.exists()
    before = job.lines()
    done = warm().launch(2, *job.arguments, OMP_NUM_THREADS=str(torch.get_num_threads()))
    assert done.returncode == 0, done.stderr
    assert f"{before} of" in done.said
    assert job.numbers() == whole.numbers()
    assert not list(tmp_path.glob("*.journal"))


@pytest.mark.slow
def test_stopped_ten_times_at_any_time_by_any_signal(
    world: dict[str, Path], teacher: Path, tmp_path: Path, rng: random.Random
) -> None:
    """From the start of the process on: while it imports, loads, builds prompts, scores, and finishes."""
    whole, job = Job(world, teacher, tmp_path / "whole.json").here(), Job(world, teacher, tmp_path / "cut.json")
    with job.start() as process:
        started = time.monotonic()
        job.wait_for(process, 1)
        until_scoring = time.monotonic() - started
        process.kill()
    for number in [signal.SIGTERM, signal.SIGINT, signal.SIGKILL] * 3 + [signal.SIGTERM]:
        before = job.lines()
        with job.start() as process:
            if rng.random() < 0.4:
                time.sleep(rng.uniform(0.2, 1.0) * until_scoring)
            else:
                job.wait_for(process, before + rng.randrange(1, 15))
                time.sleep(rng.uniform(0.0, 0.1))
            asked = time.monotonic()
            process.send_signal(number)
            error = process.communicate(timeout=120)[1]
            took = time.monotonic() - asked
        sys.stdout.write(f"{number.name}: {process.returncode} in {took:.2f} s, {before} -> {job.lines()} batches\n")
        assert process.returncode in ((0, -number) if number == signal.SIGKILL else (0, 75)), error
        assert number == signal.SIGKILL or "Traceback" not in error
        assert process.returncode != 75 or error.strip().endswith(STOPPED)
        assert job.lines() >= before or process.returncode == 0
    with job.start() as process:
        finish(process, 0)
    assert job.numbers() == whole.numbers()


@pytest.mark.slow
def test_two_processes_lose_nothing_to_a_dead_one_or_a_signal(
    world: dict[str, Path], teacher: Path, tmp_path: Path, rng: random.Random
) -> None:
    whole, job = Job(world, teacher, tmp_path / "whole.json").here(), Job(world, teacher, tmp_path / "cut.json")
    folder = job.out.with_name("cut.json.journal")
    with job.start(*LAUNCH) as process:
        job.wait_for(process, rng.randrange(10, 60))
        os.kill(rng.choice(children(process.pid)), signal.SIGKILL)
        process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert {path.name for path in folder.glob("*.jsonl")} == {"0.jsonl", "1.jsonl"}
    before = job.lines()
    with job.start(*LAUNCH) as process:
        job.wait_for(process, before + rng.randrange(5, 60))
        process.send_signal(signal.SIGTERM)
        error = process.communicate(timeout=60)[1]
    assert STOPPED in error
    assert "Unexpected" not in error
    assert job.lines() > before
    with job.start(*LAUNCH) as process:
        finish(process, 0)
    assert job.numbers() == whole.numbers()
    fresh = Job(world, teacher, tmp_path / "fresh.json")
    with fresh.start(*LAUNCH) as process:
        finish(process, 0)
    assert fresh.numbers() == whole.numbers()


def children(parent: int) -> list[int]:
    """The processes that a launcher started."""
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
