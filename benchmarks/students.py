"""What it costs to train parts of a student, or adapters: time of a step and memory beside the whole, in one run.

    python benchmarks/students.py --teacher SmolLM2-135M-Instruct --text TEXT --layers 24
    python benchmarks/students.py ... --ways seams lora --rounds 9 --precision bf16

Steps of all ways take turns, forward, backward and optimizer, so that a slow moment of the machine meets all alike;
ratios are of medians. On a CPU they are timed by what the processor spent on them, whatever else it had to do. Memory
is what distill.json says of one step of `compress distill`, each in a process of its own that returns freed blocks at
once, beside the plan.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch

from compress.base.units import format_bytes, format_count

WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "no_embeddings": {"train": "no_embeddings"},
    "seams": {"train": "seams"},
    "last:4": {"train": "last:4"},
    "norms": {"train": "norms"},
    "lora": {"lora": {"r": 16}},
    "dora": {"lora": {"r": 16, "dora": True}},
}


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="a folder")
    parser.add_argument("--text", required=True)
    parser.add_argument("--layers", type=int, required=True, help="of the student, spread over the teacher's")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--tokens", type=int, default=1024, help="a step")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    ways = list(dict.fromkeys(["whole", *options.ways]))
    with tempfile.TemporaryDirectory() as scratch:
        student = Path(scratch) / "student"
        compress("prune", str(options.teacher), str(student), f"--keep=uniform:{options.layers}", "--no-check")
        records = {way: one_step(options, way, student, Path(scratch) / way) for way in ways}
        harness.set_environment(harness.TUNED["cuda" if torch.cuda.is_available() else "cpu"])
        steps = {way: step_of(options, way, student, Path(scratch)) for way in ways}
        samples: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(options.rounds + 1):
            for way, (step, device) in steps.items():
                taken = seconds(step, device)
                if turn:  # the first compiles and allocates
                    samples[way].append(taken)
    harness.say(harness.facts())
    head = ["trained", "parameters", "s a step", "over whole", "memory", "planned", "over whole"]
    harness.say(harness.table(head, [row(way, records, samples) for way in ways]))


def one_step(options: argparse.Namespace, way: str, student: Path, out: Path) -> dict[str, Any]:
    """The record of `compress distill` of one step."""
    settings = {
        "heldout_sequences": 0, "batch_tokens": options.tokens, "tokens": options.tokens, "cpu_tuning": False,
        "precision": options.precision, **WAYS[way],
    }  # fmt: skip
    compress(
        "distill", "--student", str(student), "--teacher", str(options.teacher), "--data", options.text,
        "--out", str(out), f"--set=data.seq_len={options.seq_len}", "--set=data.heldout_sequences=0",
        *(f"--set=distill.{key}={json.dumps(value)}" for key, value in settings.items()),
    )  # fmt: skip
    record: dict[str, Any] = json.loads((out / "student" / "distill.json").read_text())
    return record


def step_of(options: argparse.Namespace, way: str, student: Path, scratch: Path) -> tuple[Callable[[], None], str]:
    """A function that takes one step on rows of random tokens, and the device it does so on."""
    from compress.base.config import build_from
    from compress.distill import DistillConfig
    from compress.distill.loop.accelerator import make_accelerator, prepare_model
    from compress.distill.loop.optimizer import make_optimizer
    from compress.distill.loop.step import Losses, StudentWithLoss
    from compress.distill.objective.objective import make_objective
    from compress.distill.objective.part import Pair
    from compress.distill.resources.auto import resolve
    from compress.distill.rows.batch import Batch
    from compress.distill.students.student import load_student
    from compress.distill.teachers.source import open_teacher
    from compress.model.cuts import cuts_of, kept_layers
    from compress.model.load import load_config

    config = build_from(
        DistillConfig, {"batch_tokens": options.tokens, "precision": options.precision, "compile": False, **WAYS[way]}
    )
    accelerator = make_accelerator(config, scratch)
    here = resolve(config, accelerator.device, processes=1, seq_len=options.seq_len, flops=0.0)
    source = load_config(options.teacher)
    pair = Pair(load_config(student), source, kept_layers(cuts_of(student), source))
    objective, learner = make_objective(config, pair), load_student(config, student, here, pair)
    vocabulary = pair.student.get_text_config().vocab_size
    rows = np.random.default_rng(0).integers(0, vocabulary, (options.tokens // options.seq_len, options.seq_len))
    guide = open_teacher(config, options.teacher, here, needs=objective.needs, vocabulary=vocabulary, heldout=rows)
    optimizer = make_optimizer(learner.model, config)
    model = prepare_model(accelerator, StudentWithLoss(learner.model, objective, vocabulary).train())
    losses = Losses(accelerator, model, objective, guide.source, here.micro_batch_rows)
    share = losses.share(Batch(ids=rows, labels=rows[:, 1:].copy(), row_ids=np.arange(len(rows))))

    def step() -> None:
        losses.backward(share, objective.at(0.0))
        optimizer.step(1e-6, skip=torch.zeros((), device=accelerator.device))
        optimizer.zero_grad()

    return step, accelerator.device.type


def seconds(step: Callable[[], None], device: str) -> float:
    """Of the processor for one step; on a GPU wall time."""
    if device != "cpu":
        return harness.seconds(step, device)
    start = time.process_time()
    step()
    return time.process_time() - start


def row(way: str, records: dict[str, dict[str, Any]], samples: dict[str, list[float]]) -> list[str]:
    """A line of the table."""
    record, median = records[way], statistics.median(samples[way])
    return [
        way,
        f"{format_count(record['trained_parameters'])} of {format_count(record['parameters'])}",
        harness.summary(samples[way]),
        f"{median / statistics.median(samples['whole']):.2f}",
        format_bytes(record["peak_memory"]),
        format_bytes(sum(record["memory_plan"].values())),
        f"{record['peak_memory'] / records['whole']['peak_memory']:.2f}",
    ]


def compress(*arguments: str) -> None:
    """Run a command; its messages are shown if it fails."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "compress.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)


if __name__ == "__main__":
    main()
