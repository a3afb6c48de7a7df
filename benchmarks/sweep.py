"""What it saves to train students side by side on one forward pass of their teacher, beside one after the other.

    python benchmarks/sweep.py --teacher DIR --text SOURCE --keep alternate --tokens 4k

Four students of one cut (alpha x temperature). Rounds take turns: all together, then each alone; ratios are of medians
of the processor's seconds, on a GPU of wall time. Weights are compared byte by byte.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from compress.base.config import build_from
from compress.base.units import parse_count
from compress.data import DataConfig, prepare
from compress.distill import DistillConfig
from compress.distill.asked import Training
from compress.distill.distillation import distill_alone, distill_together
from compress.prune import prune

STUDENTS = ((0.2, 1.0), (0.8, 1.0), (0.2, 2.0), (0.8, 2.0))
"""alpha and temperature."""


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="a folder")
    parser.add_argument("--text", required=True, help="SOURCE")
    parser.add_argument("--keep", default="alternate", help="SPEC of the students' layers")
    parser.add_argument("--tokens", type=parse_count, default=4096, help="of each training")
    parser.add_argument("--batch-tokens", type=parse_count, default=1024)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sys.stdout.write(measured(options, Path(scratch)))


def measured(options: argparse.Namespace, scratch: Path) -> str:
    """The table, once all rounds are done."""
    student = scratch / "student"
    prune(options.teacher, student, options.keep, check=False)
    text = DataConfig(dataset=options.text, tokens=2 * options.tokens, seq_len=options.seq_len, heldout_sequences=0)
    data = prepare(text, options.teacher, scratch / "data").path
    together, alone, flops = [], [], {"together": 0.0, "alone": 0.0}
    for turn in range(options.rounds):
        ways = {}
        for way in ("together", "alone"):
            asked = [
                training(options, student, data, scratch / f"{way}-{turn}" / str(i), i) for i in range(len(STUDENTS))
            ]
            start = seconds()
            results = distill_together(asked) if way == "together" else [distill_alone(each) for each in asked]
            ways[way] = seconds() - start
            flops[way] = sum(result.flops for result in results)  # type: ignore[union-attr]
        together.append(ways["together"])
        alone.append(ways["alone"])
        for i in range(len(STUDENTS)):
            one, other = (scratch / f"{way}-{turn}" / str(i) / "student/model.safetensors" for way in ways)
            if one.read_bytes() != other.read_bytes():
                raise SystemExit(f"student {i} is not its single run")
    ratio = statistics.median(together) / statistics.median(alone)
    return (
        "| students | together, s | one after the other, s | ratio | FLOPs, ratio |\n|---|---|---|---|---|\n"
        f"| {len(STUDENTS)} | {statistics.median(together):.1f} | {statistics.median(alone):.1f} | {ratio:.2f} | "
        f"{flops['together'] / flops['alone']:.2f} |\n"
    )


def training(options: argparse.Namespace, student: Path, data: Path, out: Path, number: int) -> Training:
    """Of one of the students."""
    alpha, temperature = STUDENTS[number]
    settings: dict[str, Any] = {
        "alpha": alpha,
        "temperature": temperature,
        "heldout_sequences": 0,
        "checkpoint_every": 0,
    }
    names = ("tokens", "batch_tokens", "precision")
    config = build_from(DistillConfig, settings | {name: getattr(options, name) for name in names})
    paths: dict[str, Any] = {"student": student, "teacher": options.teacher, "data": data}
    return Training(config=config, out=out / "student", work=out / "train", **paths)


def seconds() -> float:
    """The processor's time; wall time where a GPU does the work."""
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


if __name__ == "__main__":
    main()
