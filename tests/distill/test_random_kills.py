"""The command itself, killed at random moments and started again, ends where the uninterrupted run ends."""

import json
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import Running, warm
from distill_world import World
from safetensors.torch import load_file

from compress.distill import DistillConfig

Options = Callable[..., DistillConfig]


def start(world: World, config: DistillConfig) -> Running:
    """`compress distill` into `world.root / "cut"`, with as many threads as this process has."""
    return warm().start((), *world.command("cut", config), OMP_NUM_THREADS=str(torch.get_num_threads()))


def last_step(metrics: Path) -> int:
    """The last step of metrics.jsonl; -1 before the first row."""
    lines = metrics.read_text().splitlines(keepends=True) if metrics.is_file() else []
    whole = [json.loads(line)["step"] for line in lines if line.endswith("\n")]
    return whole[-1] if whole else -1


def kill_after(process: Running, metrics: Path, step: int, delay_s: float) -> tuple[int, int]:
    """SIGKILL a while after the metrics reach a step and change; returns the last step logged and the exit status."""
    before = last_step(metrics)
    while process.poll() is None:
        if (found := last_step(metrics)) >= step and found != before:
            time.sleep(delay_s)
            process.kill()
            break
        time.sleep(0.001)
    error = process.communicate()[1]
    assert process.returncode in (0, -signal.SIGKILL), error
    return last_step(metrics), process.returncode


@pytest.mark.faults(1)
@pytest.mark.parametrize("kills", [2, pytest.param(15, marks=pytest.mark.slow)])
def test_killed_at_random_the_command_ends_bitwise_equal(world: World, options: Options, kills: int) -> None:
    """Random steps, and a random part of a step or of a save after them; the student has dropout.

    Held-out losses and the optimizer's state are compared as well: they show a wrong resume that the final weights
    might hide.
    """
    seed = random.SystemRandom().randrange(2**32)
    sys.stdout.write(f"seed {seed}\n")
    rng = random.Random(seed)
    config = options(epochs=2, tokens=None, heldout_every=9, checkpoint_every=4, cpu_tuning=True)
    steps = world.run("whole", config).steps
    metrics = world.root / "cut" / "train" / "metrics.jsonl"
    at = sorted([*rng.sample(range(steps // 2), kills - 1), rng.randrange(steps // 2, steps - 8)])
    seen = [kill_after(start(world, config), metrics, step, rng.uniform(0, 0.05)) for step in at]
    sys.stdout.write(f"of {steps} steps, the last one each run logged, and its exit status: {seen}\n")
    assert any(0 < step < steps and status == -signal.SIGKILL for step, status in seen)
    process = start(world, config)
    error = process.communicate()[1]
    assert process.returncode == 0, error
    assert ("Continuing from" in error) == (seen[-1][1] != 0), error

    whole, cut = world.root / "whole", world.root / "cut"
    for name in ("student/model.safetensors", f"train/checkpoints/step-{steps}/optimizer.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    heldout = [[row for row in world.metrics(name) if "heldout_loss" in row] for name in ("whole", "cut")]
    assert heldout[0] == heldout[1]
    start_weights, end_weights = (
        load_file(world.student / "model.safetensors"),
        load_file(cut / "student/model.safetensors"),
    )
    assert all(not torch.equal(end_weights[name], tensor) for name, tensor in start_weights.items())
