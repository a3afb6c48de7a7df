"""What checkpoints cost a run: none, written in the loop, and written on a thread (`async_checkpoints`).

    python benchmarks/checkpoints.py [--rounds 5] [--steps 16] [--every 4]

The same run (29M parameters, 350 MB a checkpoint, hashed and forced to the disk) is done with a checkpoint at its end
only, and with one every few steps in both ways, in turns. A run's seconds are those from its first step to its last
metrics row, so the last checkpoint, which every run waits for, is left out.
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

from step_world import WORLDS

from compress.artifacts import write_json
from compress.distill import DistillConfig, distill, train
from compress.distill.metrics import Metrics
from compress.runtime import environment

WAYS = {"none": {}, "in the loop": {}, "on a thread": {"async_checkpoints": True}}


def seconds_of_steps(folder: Path, config: DistillConfig, out: Path) -> float:
    """Wall time from the first row of metrics to the last."""
    rows: list[float] = []

    class Timed(Metrics):
        def write(self, row: dict[str, object]) -> None:
            super().write(row)
            rows.append(time.perf_counter())

    train.Metrics, original = Timed, train.Metrics
    try:
        distill(
            config, student=folder / "student", teacher=None, data=folder / "data", out=out / "student", work=out / "w"
        )
    finally:
        train.Metrics = original
        shutil.rmtree(out)
    return rows[-1] - rows[0]


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
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        world.build(folder, num_rows=options.steps * world.rows + 1)
        for number, way in itertools.product(range(options.rounds + 1), WAYS):
            every = 0 if way == "none" else options.every
            config = dataclasses.replace(base, checkpoint_every=every, **WAYS[way])
            took = seconds_of_steps(folder, config, folder / "run")
            if number:  # the first round warms up
                found[way].append(took)
    saves = (options.steps - 1) // options.every
    without = median(found["none"])
    cost = {way: (median(times) - without) / saves for way, times in found.items() if way != "none"}
    write_json(options.out, {"seconds": found, "seconds_a_checkpoint": cost, "saves": saves, **environment()})
    sys.stdout.write(json.dumps({"seconds": {w: median(t) for w, t in found.items()}, "a checkpoint": cost}) + "\n")


if __name__ == "__main__":
    main()
