"""A whole training step, ours against other loops: tokens a second, MFU, peak memory.

    python benchmarks/step.py                    all of it on the CPU, hours: it prints how many
    python benchmarks/step.py --smoke            a tiny model, two minutes: does every loop still run?
    python benchmarks/step.py --device cuda      on a GPU, with Llama-3.2-1B's shape and its half-depth student
    python benchmarks/step.py --report           no measuring: the table from what was measured

Writes OUT/step.json after every case, and OUT/step.md from it; a rerun goes on where the last one stopped. Every loop
runs in a fresh process, in turns. README.md beside this file says what is measured and how.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import harness
import torch
from harness import DTYPES, ENVIRONMENTS, TUNED, Results, in_fresh_process, installed, product_rate, say, synchronize
from step_loops import LOOPS, Job
from step_report import report
from step_world import WORLDS, World

from compress.distill.resources.flops import training_flops_per_token

WARM_WINDOWS = 1
WINDOW_STEPS = {"cpu": 1, "cuda": 5}


def best_rate(world: World, dtype: torch.dtype, device: str) -> float:
    """The most FLOP/s a matrix product reached: the student's head, a layer's matrix, and a square one; best of 8."""
    width = 2048 if device == "cpu" else 8192
    tokens = world.batch_tokens
    best = 0.0
    for m, k, n in ((tokens, world.hidden, world.vocabulary), (tokens, world.hidden, world.intermediate), (width,) * 3):
        left, right = (torch.randn(size, device=device).to(dtype) for size in ((m, k), (k, n)))
        out = left @ right
        for _ in range(8):
            synchronize(device)
            start = time.perf_counter()
            torch.mm(left, right, out=out)
            synchronize(device)
            best = max(best, 2 * m * k * n / (time.perf_counter() - start))
    return best


def run_case(case: dict[str, Any]) -> Any:
    """Measure one case in this process; `case` is what `cases` made."""
    world, folder = World(**case["world"]), case.get("folder", "")
    if case["kind"] == "build":
        world.build(Path(folder), num_rows=case["rows"])
        return None
    own_switches = case["environment"] == "onednn+malloc" and case.get("loop") == "ours"
    if not own_switches:
        harness.set_environment(case["environment"])
    if case["kind"] == "rate":
        return best_rate(world, DTYPES[case["dtype"]], case["device"])
    job = Job(
        world=world,
        folder=Path(folder),
        dtype=case["dtype"],
        device=case["device"],
        windows=case["windows"],
        window_steps=case["window_steps"],
        cpu_tuning=own_switches,
    )
    found = next(loop for loop in LOOPS if loop.name == case["loop"]).run(job)
    return {**found, "windows_s": found["windows_s"][WARM_WINDOWS:]}


def cases(options: argparse.Namespace, world: World) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """Every case of one world by name, in rounds over the loops, and a rough guess of its seconds on two cores."""
    made: dict[str, dict[str, Any]] = {}
    guesses: dict[str, float] = {}
    loops = [loop.name for loop in LOOPS if loop.package is None or installed(loop.package)]
    chosen = [name for name in loops if name == "ours" or name in (options.loops or loops)]
    for dtype, environment in product(options.dtypes, options.environments):
        common = {"world": dataclasses.asdict(world), "device": options.device}
        common |= {"dtype": dtype, "environment": environment}
        made[f"rate {world.name} {dtype} {environment}"] = {"kind": "rate", **common}
        guesses[f"rate {world.name} {dtype} {environment}"] = 15
        step_s = guess_step_s(world, dtype, environment) if options.device == "cpu" else 3.0
        for turn in range(options.rounds):
            first = turn % len(chosen)
            for loop in chosen[first:] + chosen[:first]:
                name = f"step {world.name} {dtype} {environment} {loop} {turn}"
                windows = WARM_WINDOWS + options.windows
                steps = {"windows": windows, "window_steps": WINDOW_STEPS[options.device]}
                made[name] = {"kind": "step", "loop": loop, **steps, **common}
                guesses[name] = 15 + step_s * windows + 15 * (loop == "hf_liger")
    return made, guesses


def guess_step_s(world: World, dtype: str, environment: str) -> float:
    """A guess at one step of a middling loop on a CPU."""
    flops = world.batch_tokens * training_flops_per_token(
        world.config(world.student_layers), world.config(world.teacher_layers), world.seq_len
    )
    per_logit_s = 5e-8 if environment != "onednn+malloc" else 1.5e-8
    return 1.5 * flops / product_rate(dtype) + world.batch_tokens * world.vocabulary * per_logit_s


def measure(options: argparse.Namespace, results: Results, world: World) -> None:
    """Build a world, measure what is missing of it, and remove it."""
    made, guesses = cases(options, world)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        rows = (WARM_WINDOWS + options.windows) * WINDOW_STEPS[options.device] * world.rows
        say(f"building {world}")
        build = {"kind": "build", "world": dataclasses.asdict(world), "folder": folder, "rows": rows}
        built = in_fresh_process(Path(__file__), build)
        if harness.failed(built):
            raise SystemExit(f"The models could not be made: {built['failed']}")
        results.run(made, guesses, folder=folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=3, help="how often each loop is started")
    parser.add_argument("--windows", type=int, default=3, help="timed windows a round: a step on CPUs, five on GPUs")
    parser.add_argument("--environments", nargs="+", choices=ENVIRONMENTS, help="CPU only; all by default")
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=None)
    parser.add_argument("--vocabularies", nargs="+", type=int, help="only the models with these V; all by default")
    parser.add_argument("--loops", nargs="+", choices=[loop.name for loop in LOOPS], help="besides ours")
    parser.add_argument("--work", type=Path, help="where to build models for the time of the run (a temporary folder)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, one round, in OUT/smoke")
    parser.add_argument("--report", action="store_true", help="only write the table again")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        result = run_case(json.loads(options.case))
        sys.stdout.write("\n" + json.dumps(result) + "\n")
        return
    options.environments = options.environments or list(ENVIRONMENTS)
    options.dtypes = options.dtypes or (list(DTYPES) if options.device == "cpu" else ["bf16"])
    worlds = WORLDS["smoke" if options.smoke else options.device]
    if options.smoke:
        options.rounds, options.windows, options.out = 1, 2, options.out / "smoke"
        options.environments = [TUNED[options.device]]
    if options.device == "cuda":
        options.environments = ["stock"]
    stem = "step" if options.device == "cpu" else "step-cuda"
    results = Results(options.out / f"{stem}.json", Path(__file__))
    if not options.report:
        for world in worlds:
            if options.vocabularies and world.vocabulary not in options.vocabularies:
                continue
            measure(options, results, world)
    page = report(results, options.device)
    (options.out / f"{stem}.md").write_text(page)
    sys.stdout.write(page)


if __name__ == "__main__":
    main()
