"""What it costs to train parts of a student, or adapters: tokens a second and memory beside the whole, in one run.

    python benchmarks/students.py --teacher SmolLM2-135M-Instruct --text TEXT --layers 24
    python benchmarks/students.py ... --rounds 3 --steps 4 --set precision=bf16

Each measurement is `compress distill` in a process of its own; all ways take turns, so that a slow moment of the
machine meets all alike. Ratios are of medians.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness

from compress.base.units import format_bytes, format_count

WAYS = {
    "whole": [],
    "no_embeddings": ["--train=no_embeddings"],
    "seams": ["--train=seams"],
    "last:4": ["--train=last:4"],
    "norms": ["--train=norms"],
    "lora": ["--set=distill.lora.r=16"],
    "dora": ["--set=distill.lora={r: 16, dora: true}"],
}


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--layers", type=int, required=True, help="of the student, spread over the teacher's")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--tokens", type=int, default=1024, help="a step")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of distill, in all ways")
    options = parser.parse_args()
    ways = list(dict.fromkeys(["whole", *options.ways]))
    with tempfile.TemporaryDirectory() as scratch:
        student = Path(scratch) / "student"
        compress("prune", options.teacher, str(student), f"--keep=uniform:{options.layers}", "--no-check")
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        for turn in range(options.rounds):
            for way in ways:
                found[way].append(measure(options, way, student, Path(scratch) / f"{way}-{turn}"))
    harness.say(harness.facts())
    head = ["trained", "parameters", "tokens/s", "over whole", "memory", "planned", "less than whole"]
    harness.say(harness.table(head, [row(way, found) for way in ways]))


def measure(options: argparse.Namespace, way: str, student: Path, out: Path) -> dict[str, Any]:
    """What distill.json says of a run of a few steps."""
    settings = {
        "heldout_sequences": 0, "batch_tokens": options.tokens, "checkpoint_every": 0, "log_every": options.steps,
    }  # fmt: skip
    compress(
        "distill", "--student", str(student), "--teacher", options.teacher, "--data", options.text, "--out", str(out),
        "--tokens", str(options.steps * options.tokens), f"--set=data.seq_len={options.seq_len}",
        "--set=data.heldout_sequences=0", *(f"--set=distill.{key}={value}" for key, value in settings.items()),
        *(f"--set=distill.{each}" for each in options.set), *WAYS[way],
    )  # fmt: skip
    record: dict[str, Any] = json.loads((out / "student" / "distill.json").read_text())
    return record


def row(way: str, found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A line of the table."""

    def median(name: str, key: str) -> float:
        return statistics.median(run[key] for run in found[name])

    rate, memory, record = median(way, "tokens_per_s"), median(way, "peak_memory"), found[way][0]
    return [
        way,
        f"{format_count(record['trained_parameters'])} of {format_count(record['parameters'])}",
        f"{rate:.1f}",
        f"{rate / median('whole', 'tokens_per_s'):.2f}",
        format_bytes(memory),
        format_bytes(sum(record["memory_plan"].values())),
        f"{1 - memory / median('whole', 'peak_memory'):.0%}",
    ]


def compress(*arguments: str) -> None:
    """Run a command; its messages are shown if it fails."""
    done = subprocess.run([sys.executable, "-m", "compress.cli", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)


if __name__ == "__main__":
    main()
