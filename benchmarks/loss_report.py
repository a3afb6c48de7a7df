"""The Markdown page of `loss.py`: what was asked of the loss, and what was measured."""

from statistics import median
from typing import Any

from harness import ENVIRONMENTS, TUNED, Results, Shape, summary, table, verdict
from loss_peers import PEERS

FLOOR_LIMIT = {"fp32": 1.2, "bf16": 1.3}
BEST_PEER_LIMIT, MEMORY_LIMIT = 0.5, 1 / 3
LABELS = {"floor": "four products (floor)", **{peer.name: peer.label for peer in PEERS}}

Times = dict[str, Any]
"""Name -> samples in seconds, or why there are none."""


def report(results: Results, device: str) -> str:
    """The whole page."""
    notes = "".join(f"- {peer.label}: {peer.note}.\n" for peer in PEERS if peer.note)
    parts = [
        "# The distillation loss against its peers",
        results.about(),
        "0.8 T^2 KL(teacher || student) + 0.2 CE, forward and backward pass. Seconds are medians of interleaved "
        "samples, the fastest in parentheses.",
        "## What was asked",
        checks(results, device),
        "## Time",
        *times(results),
        "## Memory",
        memory(results),
        memory_by_tokens(results),
        "## Error against float64",
        errors(results),
        "## Notes",
        notes + results.failures(),
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def by_case(results: Results) -> dict[tuple[str, str, str], dict[str, Times]]:
    """(shape, dtype, temperature) -> environment -> times."""
    found: dict[tuple[str, str, str], dict[str, Times]] = {}
    for case, result in results.of_kind("time"):
        for temperature, samples in result.items():
            key = (str(Shape(*case["shape"])), case["dtype"], temperature)
            found.setdefault(key, {})[case["environment"]] = samples
    return found


def medians(samples: Times) -> dict[str, float]:
    """Median seconds of everything that ran."""
    return {name: median(found) for name, found in samples.items() if isinstance(found, list)}


def checks(results: Results, device: str) -> str:
    """Ours against floor and peers: in one environment, and our default against the peers' default."""
    rows = []
    for (shape, dtype, temperature), environments in by_case(results).items():
        row = [shape, dtype, temperature]
        same = {name: medians(samples) for name, samples in environments.items()}
        tuned, stock = same.get(TUNED[device], {}), same.get("stock", {})
        row.append(floor_ratios(same, FLOOR_LIMIT[dtype]))
        row.append(against_best(tuned, stock, BEST_PEER_LIMIT))
        row.append("<br>".join(f"{name}: {against_best(s, s, 1.0)}" for name, s in same.items()))
        rows.append(row)
    head = ["shape", "dtype", "T", "ours / floor", "our default / best peer's default", "ours / best peer, same"]
    return table(head, rows)


def floor_ratios(same: dict[str, dict[str, float]], limit: float) -> str:
    ratios = {name: s["ours"] / s["floor"] for name, s in same.items() if "ours" in s}
    return "<br>".join(f"{name}: {verdict(ratio, limit, at_most=True)}" for name, ratio in ratios.items())


def against_best(ours: dict[str, float], peers: dict[str, float], limit: float) -> str:
    """Our median in one environment over the fastest peer's in another."""
    others = {name: s for name, s in peers.items() if name not in ("ours", "floor")}
    if "ours" not in ours or not others:
        return "not measured"
    best = min(others, key=others.__getitem__)
    return f"{verdict(ours['ours'] / others[best], limit, at_most=True)} ({LABELS[best]})"


def times(results: Results) -> list[str]:
    """A table for each shape, dtype and temperature."""
    parts = []
    for (shape, dtype, temperature), environments in by_case(results).items():
        columns = [name for name in ENVIRONMENTS if name in environments]
        names = list(dict.fromkeys(name for samples in environments.values() for name in samples))
        rows = [[LABELS[name], *(cell(environments[c], name) for c in columns)] for name in names]
        parts.append(f"{shape}, {dtype}, T = {temperature}: seconds, and times the floor of the same environment.")
        parts.append(table(["", *columns], rows))
    return parts


def cell(samples: Times, name: str) -> str:
    found = samples.get(name)
    if not isinstance(found, list):
        return "-" if found is None else str(found)
    return f"{summary(found)}, {median(found) / median(samples['floor']):.2f}x"


def memory(results: Results) -> str:
    """Extra peak memory of every peer, and ours over the dense loss's."""
    found: dict[str, dict[str, float]] = {}
    for case, result in results.of_kind("memory"):
        if not case["tokens_series"]:
            column = f"{Shape(*case['shape'])} {case['dtype']}"
            found.setdefault(column, {})[case["peers"][0]] = result
    if not found:
        return ""
    names = list(dict.fromkeys(name for column in found.values() for name in column))
    rows = [[LABELS[name], *(column.get(name, "-") for column in found.values())] for name in names]
    shares = [c["ours"] / c["dense"] if {"ours", "dense"} <= c.keys() else float("nan") for c in found.values()]
    rows.append(["ours / dense", *(verdict(share, MEMORY_LIMIT, at_most=True) for share in shares)])
    text = "Peak memory beyond the inputs and the returned gradients, MiB; each in a fresh process, T = 1."
    return f"{text}\n\n{table(['', *found], rows)}"


def memory_by_tokens(results: Results) -> str:
    """Ours and the dense loss's memory as the number of tokens grows."""
    found: dict[str, dict[str, float]] = {}
    for case, result in results.of_kind("memory"):
        if case["tokens_series"]:
            found.setdefault(str(Shape(*case["shape"])), {})[case["peers"][0]] = result
    rows = [[shape, column.get("ours", "-"), column.get("dense", "-")] for shape, column in found.items()]
    return table(["fp32, MiB", LABELS["ours"], LABELS["dense"]], rows) if rows else ""


def errors(results: Results) -> str:
    """Relative errors, and whether ours are no larger than the dense loss's own."""
    rows = []
    for case, result in results.of_kind("errors"):
        for name, found in result.items():
            figures = [found["loss"], found["hidden_gradient"], found["head_gradient"]]
            row = [case["dtype"], case["environment"], LABELS[name], *(f"{figure:.2g}" for figure in figures)]
            larger = [quantity for quantity in found if found[quantity] > result["dense"][quantity]]
            if name == "ours":
                row.append(f"**no**: {', '.join(larger)}" if larger else "yes")
            rows.append([*row, ""][:7])
    head = ["dtype", "environment", "", "loss", "d hidden", "d head", "no larger than dense"]
    text = "T = 2, 30% of the labels ignored; relative, the root mean square of five draws."
    return f"{text}\n\n{table(head, rows)}" if rows else ""
