"""The Markdown page of `step.py`: what was asked of the step, and what was measured."""

import dataclasses
from statistics import median
from typing import Any

from harness import ENVIRONMENTS, MIB, TUNED, Results, table, verdict
from step_loops import LOOPS
from step_world import World

from compress.distill.resources.flops import training_flops_per_token

DEFAULT_LIMIT, SAME_LIMIT, MEMORY_LIMIT = 2.0, 1.15, 0.55
LABELS = {loop.name: loop.label for loop in LOOPS}


@dataclasses.dataclass
class Found:
    """One loop in one environment, over all rounds."""

    rates: list[float] = dataclasses.field(default_factory=list)
    """Tokens a second of every window."""
    peaks: list[float] = dataclasses.field(default_factory=list)
    """Peak MiB of every process."""

    @property
    def rate(self) -> float:
        return median(self.rates)

    @property
    def peak(self) -> float:
        return median(self.peaks)


Loops = dict[str, Found]


def report(results: Results, device: str) -> str:
    """The whole page."""
    groups = collect(results)
    parts = [
        "# A training step against other loops",
        results.about(),
        "Tokens a second are medians over the steps of all rounds, the fastest in parentheses; memory is the peak of a "
        "fresh process, median over the rounds. MFU: the FLOPs of the models (teacher forward, student forward and "
        "backward, attention included) over the best rate of a matrix product in this run, in the same dtype.",
        "## What was asked",
        checks(groups, device),
    ]
    for (world, dtype), environments in groups.items():
        rate = best_rate(results, world, dtype)
        parts += [f"## {world}, {dtype}", rate_line(rate, dtype), steps(world, environments, rate)]
    parts += [results.failures()]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def collect(results: Results) -> dict[tuple[World, str], dict[str, Loops]]:
    """(world, dtype) -> environment -> loop -> what was found."""
    groups: dict[tuple[World, str], dict[str, Loops]] = {}
    for case, result in results.of_kind("step"):
        world = World(**case["world"])
        loops = groups.setdefault((world, case["dtype"]), {}).setdefault(case["environment"], {})
        found = loops.setdefault(case["loop"], Found())
        found.rates += [case["window_steps"] * world.batch_tokens / s for s in result["windows_s"]]
        found.peaks.append(result["peak_bytes"] / MIB)
    return groups


def checks(groups: dict[tuple[World, str], dict[str, Loops]], device: str) -> str:
    """Our default against the best peer's default, and ours against the best peer in the same environment."""
    rows = []
    for (world, dtype), environments in groups.items():
        tuned, stock = environments.get(TUNED[device], {}), environments.get("stock", {})
        default = against_best(tuned, stock, DEFAULT_LIMIT)
        same = {name: against_best(loops, loops, SAME_LIMIT) for name, loops in environments.items()}
        spoken = "<br>".join(f"{name}: {speed}" for name, (speed, _) in same.items())
        memories = "<br>".join(f"{name}: {memory}" for name, (_, memory) in same.items())
        rows.append([world.name, dtype, default[0], default[1], spoken, memories])
    head = ["shape", "dtype", "our default / best default, tokens/s", "memory, of those", "same environment, tokens/s"]
    return table([*head, "memory, of those"], rows)


def against_best(ours: Loops, peers: Loops, limit: float) -> tuple[str, str]:
    """Our rate over the fastest peer's, and our peak memory over the same peer's."""
    others = {name: found for name, found in peers.items() if name != "ours"}
    if "ours" not in ours or not others:
        return "not measured", "not measured"
    best = max(others, key=lambda name: others[name].rate)
    speed = verdict(ours["ours"].rate / others[best].rate, limit, at_most=False)
    memory = verdict(ours["ours"].peak / others[best].peak, MEMORY_LIMIT, at_most=True)
    return f"{speed} ({LABELS[best]})", memory


def best_rate(results: Results, world: World, dtype: str) -> float | None:
    """The most FLOP/s measured for a world's dtype, in any environment."""
    cases = results.of_kind("rate")
    rates = [rate for case, rate in cases if case["world"]["name"] == world.name and case["dtype"] == dtype]
    return max(rates, default=None)


def rate_line(rate: float | None, dtype: str) -> str:
    return "" if rate is None else f"Best rate of a {dtype} matrix product: {rate / 1e9:.0f} GFLOP/s."


def steps(world: World, environments: dict[str, Loops], rate: float | None) -> str:
    """A row for each loop: for each environment tokens a second, MFU and peak memory."""
    flops = training_flops_per_token(
        world.config(world.student_layers), world.config(world.teacher_layers), world.seq_len
    )
    columns = [name for name in ENVIRONMENTS if name in environments]
    names = [name for name in LABELS if any(name in loops for loops in environments.values())]
    rows: list[list[Any]] = []
    for name in names:
        row: list[Any] = [LABELS[name]]
        for column in columns:
            found = environments[column].get(name)
            if found is None:
                row += ["-", "-", "-"]
                continue
            mfu = "-" if rate is None else f"{found.rate * flops / rate:.0%}"
            row += [f"{found.rate:,.0f} ({max(found.rates):,.0f})", mfu, f"{found.peak:,.0f}"]
        rows.append(row)
    head = [""] + [f"{column}: {what}" for column in columns for what in ("tokens/s", "MFU", "peak MiB")]
    return table(head, rows)
