"""What checkpoints cost a run: none, written in the loop, and written on a thread (`async_checkpoints`).

    python benchmarks/checkpoints.py [--rounds 5] [--steps 16] [--every 4]

The same run (29M parameters, 350 MB a checkpoint, hashed and forced to the disk) is done with a checkpoint at its end
only, and with one every few steps in both ways, in turns. A run's seconds are those from its first step to its last
metrics row, so the last checkpoint, which every run waits for, is left out. With a thread, the steps during which it
writes are also set beside the others.
"""

import argparse
import dataclasses
import itertools
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from step_world import WORLDS

from compress.base.disk import write_json
from compress.base.machine import environment
from compress.distill import DistillConfig, distill
from compress.distill.loop import checkpoint, train
from compress.distill.loop.metrics import Metrics

WAYS = {"none": {}, "in the loop": {}, "on a thread": {"async_checkpoints": True}}


def timed_run(folder: Path, config: DistillConfig, out: Path) -> tuple[list[float], list[tuple[float, float]]]:
    """When each row of metrics was written, and from when to when each checkpoint was."""
    rows: list[float] = []
    writes: list[tuple[float, float]] = []

    class Timed(Metrics):
        def write(self, row: dict[str, object]) -> None:
            super().write(row)
            rows.append(time.perf_counter())

    def write(*arguments: Any) -> None:
        start = time.perf_counter()
        original_write(*arguments)
        writes.append((start, time.perf_counter()))

    train.Metrics, original = Timed, train.Metrics
    checkpoint.write, original_write = write, checkpoint.write
    try:
        distill(
            config, student=folder / "student", teacher=None, data=folder / "data", out=out / "student", work=out / "w"
        )
    finally:
        train.Metrics, checkpoint.write = original, original_write
        shutil.rmtree(out)
    return rows, writes


def split_steps(rows: list[float], writes: list[tuple[float, float]]) -> dict[str, list[float]]:
    """Seconds of the steps during most of which a checkpoint was written, and of those during which none was."""
    found: dict[str, list[float]] = {"while one is written": [], "while none is": []}
    for start, end in itertools.pairwise(rows):
        overlap = sum(max(0.0, min(end, last) - max(start, first)) for first, last in writes)
        if overlap == 0:
            found["while none is"].append(end - start)
        elif overlap > (end - start) / 2:
            found["while one is written"].append(end - start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--every", type=int, default=4, help="steps between checkpoints")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "checkpoints.json")
    options = parser.parse_args()
    world = dataclasses.replace(WORLDS["cpu"][0], rows=2)
    base = DistillConfig(
        alpha=0.0, batch_tokens=world.batch_tokens, tokens=options.steps * world.batch_tokens, log_every=1,
        heldout_every=0, heldout_sequences=0, checkpoint_every=options.every,
    )  # fmt: skip
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    steps: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        world.build(folder, num_rows=options.steps * world.rows + 1)
        for number, way in itertools.product(range(options.rounds + 1), WAYS):
            every = 0 if way == "none" else options.every
            config = dataclasses.replace(base, checkpoint_every=every, **WAYS[way])
            rows, writes = timed_run(folder, config, folder / "run")
            if not number:  # the first round warms up
                continue
            found[way].append(rows[-1] - rows[0])
            if way == "on a thread":
                for when, seconds in split_steps(rows, writes).items():
                    steps.setdefault(when, []).extend(seconds)
    saves = (options.steps - 1) // options.every
    without = median(found["none"])
    cost = {way: (median(times) - without) / saves for way, times in found.items() if way != "none"}
    result = {"seconds": found, "seconds_a_checkpoint": cost, "saves": saves, "steps_with_a_thread": steps}
    write_json(options.out, {**result, "torch_threads": torch.get_num_threads(), **environment()})
    medians = {name: {k: median(v) for k, v in times.items()} for name, times in (("runs", found), ("steps", steps))}
    sys.stdout.write(json.dumps({**medians, "a checkpoint": cost}) + "\n")


if __name__ == "__main__":
    main()
