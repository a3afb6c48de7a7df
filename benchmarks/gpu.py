"""What a GPU is asked once: tests, the loss against float64 and peers, whole steps, kill and resume, evaluation.

    bash benchmarks/gpu.sh                     everything, in at most 8 minutes (GPU_SECONDS)
    bash benchmarks/gpu.sh --only recovery     one part by name
    bash benchmarks/gpu.sh --smoke             the same parts on tiny models, on a CPU too

Parts run in the order of `PARTS`, each in a process of its own with a limit of its own, until `--seconds` are spent.
After each, everything known is written: gpu.json, and gpu.md with a table of it.
"""

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_parts
from gpu_parts import Scale

HERE = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Part:
    """A function, its options, and about how many seconds it takes on an H100: it is left out when less is left."""

    make: Callable[..., dict[str, Any]]
    seconds: int
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    alone: bool = False
    """Whether it is run only when asked for by name."""


PARTS = {
    "hardware": Part(gpu_parts.hardware, 20),
    "build": Part(gpu_parts.build, 40),
    "step, eager": Part(gpu_parts.step, 30, {"compile": False}),
    "step, compiled": Part(gpu_parts.step, 75, {"compile": True}),
    "loss": Part(gpu_parts.loss, 50),
    "resume": Part(gpu_parts.resume, 60, {"deterministic": False}),
    "resume, deterministic": Part(gpu_parts.resume, 60, {"deterministic": True}),
    "tests": Part(gpu_parts.tests, 120),
    "step, deterministic": Part(gpu_parts.step, 25, {"compile": False, "deterministic": True, "steps": 5}),
    "evaluate": Part(gpu_parts.evaluate, 45),
    "profile": Part(gpu_parts.profile, 20),
    "step, documents apart": Part(gpu_parts.step, 30, {"compile": False, "document_mask": True, "steps": 5}),
    "step, recomputed": Part(gpu_parts.step, 25, {"compile": False, "gradient_checkpointing": True, "steps": 5}),
    "step, adamw8bit": Part(gpu_parts.step, 40, {"compile": False, "optimizer": "adamw8bit", "steps": 5}),
    "step, muon": Part(gpu_parts.step, 30, {"compile": False, "optimizer": "muon", "steps": 5}),
    "step, fp8 teacher, compiled": Part(
        gpu_parts.step, 75, {"compile": True, "teacher_precision": "fp8", "teacher_max_kl": 1.0}
    ),
    "step, documents apart, compiled": Part(gpu_parts.step, 75, {"compile": True, "document_mask": True}),
    "recovery": Part(gpu_parts.recovery, 300, alone=True),
}
"""In the order of what is most worth knowing."""
ALWAYS = ("hardware", "build")
"""What the others are measured on, and against."""


def run_part(name: str, work: Path, *, smoke: bool, limit: float) -> dict[str, Any]:
    """A part in a process of its own; what it found, or how it failed."""
    command = [sys.executable, __file__, "--part", name, "--work", str(work), *["--smoke"] * smoke]
    start, file = time.monotonic(), work / "result.json"
    file.unlink(missing_ok=True)
    # A session of its own: a part that is stopped takes the processes that it started with it.
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _, error = process.communicate(timeout=limit)
        found = json.loads(file.read_text()) if process.returncode == 0 else {"failed": _last_lines(error)}
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        found = {"failed": f"stopped after {limit:.0f} s"}
    return {"part seconds": round(time.monotonic() - start, 1), **found}


def _last_lines(error: str) -> str:
    """What a traceback ends with, which begins with no space."""
    lines = [line for line in error.strip().splitlines() if line[:1].strip()]
    return " ".join(lines[-3:])[-3000:]


def page(found: dict[str, Any]) -> str:
    """gpu.md: a heading for the machine, the steps side by side, the other parts as lists."""
    about = found.get("hardware", {})
    lines = [f"# {about.get('device', 'unknown')}", "", _inline({k: v for k, v in about.items() if k != "device"}), ""]
    steps = {name: part for name, part in found.items() if name.startswith("step") and "tokens/s" in part}
    if steps:
        columns = ("tokens/s", "MFU", "peak GiB", "reserved GiB", "planned GiB", "first step, s")
        lines += ["| step | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
        lines += [
            f"| {name} | " + " | ".join(str(part.get(c, "")) for c in columns) + " |" for name, part in steps.items()
        ]
        lines.append("")
    for name, part in found.items():
        if name not in steps and name != "hardware":
            lines += [f"## {name}", "", *(f"- {key}: {_inline(value)}" for key, value in part.items()), ""]
    return "\n".join(lines)


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key} {_inline(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(_inline(part) for part in value)
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else str(value)


def main() -> None:
    """Run the parts that are asked for, as long as there is time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu", help="folder of gpu.json and gpu.md")
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--only", nargs="*", default=[], help="parts to run, by the beginnings of their names")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        part = PARTS[options.part]
        result = part.make(Scale(options.smoke), options.work, **part.options)
        (options.work / "result.json").write_text(json.dumps(result))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ["GPU_OUT"] = str(options.out.resolve())
    end, found = time.monotonic() + options.seconds, {}
    with tempfile.TemporaryDirectory() as work:
        for name, part in PARTS.items():
            asked = any(name.startswith(start) for start in options.only)
            if name not in ALWAYS and not (asked if options.only else not part.alone):
                continue
            left = end - time.monotonic()
            if left < part.seconds and not options.smoke:
                found[name] = {"left out": f"{left:.0f} s left, about {part.seconds} needed"}
                continue
            limit = min(left, (5 if options.smoke else 2) * part.seconds + 30)
            found[name] = run_part(name, Path(work), smoke=options.smoke, limit=limit)
            (options.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
            (options.out / "gpu.md").write_text(page(found))
            print(f"{name}: {_inline(found[name])[-1500:]}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
