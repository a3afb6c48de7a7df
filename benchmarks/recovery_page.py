"""The page of recovery.py: its cases one by one, what seeds agree on, and the curves of held-out KL."""

from html import escape
from statistics import mean
from typing import Any

from compress.base.units import format_count, format_seconds
from compress.report.pages import svg

_TEXTS = ("text", "other")


def page(cases: list[dict[str, Any]]) -> str:
    """All cases, and the recipes against each other, as Markdown."""
    return "\n".join(filter(None, (table(cases), by_recipe(cases))))


def table(cases: list[dict[str, Any]]) -> str:
    """The cases as a Markdown table, seeds after each other, each with its standard errors over documents or items."""
    tasks = sorted({task for case in cases for task in case.get("tasks", {})})
    kinds = [kind for kind in ("text", "other") if any(kind in case for case in cases)]
    head = ["layers", "cut", "repair", "recipe", "a step", "lr", "seed", "tokens", "time"]
    head += [column for kind in kinds for column in (f"KL, {kind}", f"same top token, {kind}")] + tasks
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for case in sorted(cases, key=lambda c: (-(c["layers"] or 1e9), c["cut"], bool(c.get("repaired")), c["name"])):
        row = [str(case["layers"] or "all"), case["cut"], {True: "yes", False: "no"}.get(case.get("repaired"), "–")]
        row += [case.get("recipe", "–"), format_count(case.get("batch_tokens", 0)), f"{case.get('lr', 0):g}"]
        row += [str(case.get("seed", "–")), format_count(case.get("tokens", 0))]
        row.append(format_seconds(case.get("cut_seconds", 0.0) + case.get("seconds", 0.0)))
        for kind in kinds:
            near = case.get(kind, {})
            kl = f"{near['kl_nats']:.3f} ± {near['kl_nats_stderr']:.3f}" if "kl_nats" in near else "–"
            row += [kl, f"{near['top1_agreement']:.1%}" if "top1_agreement" in near else "–"]
        for task in tasks:
            score = case.get("tasks", {}).get(task)
            row.append("–" if score is None else f"{score['value']:.1%} ± {score['stderr'] or 0:.1%}")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def curves(cases: list[dict[str, Any]]) -> str:
    """Held-out KL by tokens and by seconds of training: a line for each case that was healed, the mean over seeds."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        if case.get("curve"):
            repaired = ", repaired" if case["repaired"] else ""
            groups.setdefault(f"{case['layers']} layers, {case['cut']}{repaired}, {case['recipe']}", []).append(case)
    width, height, left, right = 460.0, 300.0, 50.0, 20.0
    lines = {
        name: (
            [(tokens, mean(case["curve"][i][1] for case in found)) for i, (tokens, _) in enumerate(found[0]["curve"])],
            mean(case["seconds"] / case["tokens"] for case in found),
        )
        for name, found in groups.items()
    }
    if not lines:
        return "<svg xmlns='http://www.w3.org/2000/svg'/>"
    values = [kl for points, _ in lines.values() for _, kl in points]
    up = svg.Scale(min(values) / 1.1, max(values) * 1.1, height - 40, 10, log=True)
    parts: list[str] = []
    for panel, unit in enumerate(("training tokens", "seconds of training")):
        first = panel * width
        rates = {name: 1.0 if panel == 0 else rate for name, (_, rate) in lines.items()}
        most = max(points[-1][0] * rates[name] for name, (points, _) in lines.items())
        across = svg.Scale(0.0, most, first + left, first + width - right)
        for tick in up.ticks():
            parts.append(svg.line(first + left, up(tick), first + width - right, up(tick), "grid"))
            parts.append(svg.text(first + left - 6, up(tick) + 4, f"{tick:g}", text_anchor="end"))
        parts += [svg.text(across(x), height - 22, format_count(x), text_anchor="middle") for x in across.ticks(4)]
        parts.append(svg.text(first + width / 2, height - 5, unit, text_anchor="middle"))
        for number, (name, (points, _)) in enumerate(lines.items()):
            parts.append(svg.path([(across(x * rates[name]), up(y)) for x, y in points], f"c{number % 8}"))
    for number, name in enumerate(lines):
        y = height + 16 + 17 * number
        parts += [svg.line(left, y - 4, left + 24, y - 4, f"c{number % 8}"), svg.text(left + 32, y, name)]
    colours = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#bf3989", "#57606a", "#0a7ea4")
    style = "text{font:12px sans-serif;fill:#57606a}path{fill:none;stroke-width:2}line{stroke-width:2}"
    style += ".grid{stroke:#d0d7de;stroke-width:1}" + "".join(f".c{i}{{stroke:{c}}}" for i, c in enumerate(colours))
    box = f"0 0 {2 * width:g} {height + 16 + 17 * len(lines):g}"
    body = "".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}"><title>{escape("Held-out KL to the teacher, nats")}'
        f"</title><style>{style}</style>{body}</svg>\n"
    )


def by_recipe(cases: list[dict[str, Any]], reference: str = "kl") -> str:
    """Recipes that began alike and read as many tokens, as a Markdown table: means over seeds, and in brackets how much
    more KL each seed has than the reference recipe with that seed, on the same rows."""
    groups: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for case in cases:
        if "recipe" in case:
            start = (case["layers"], case["cut"], case["repaired"], case["batch_tokens"], case["tokens"])
            groups.setdefault((*start, case["recipe"]), {})[case["seed"]] = case
    rows = []
    for (*start, recipe), seeds in groups.items():
        begun = f"{start[0]}, {start[1]}{', repaired' if start[2] else ''}"
        cells = [begun, recipe, format_count(start[4]), str(len(seeds))]
        compared = groups.get((*start, reference), {})
        for kind in _TEXTS:
            found = [case[kind] for case in seeds.values() if kind in case]
            more = [
                seeds[seed][kind]["kl_nats"] - compared[seed][kind]["kl_nats"]
                for seed in sorted(seeds.keys() & compared.keys())
                if kind in seeds[seed] and kind in compared[seed]
            ]
            kl = f"{mean(each['kl_nats'] for each in found):.4f}" if found else "–"
            cells.append(f"{kl} ({', '.join(f'{value:+.4f}' for value in more)})" if more else kl)
            cells.append(f"{mean(each['heldout_loss_nats'] for each in found):.3f}" if found else "–")
            cells.append(f"{mean(each['top1_agreement'] for each in found):.1%}" if found else "–")
        rows.append((str(start), mean(case["text"]["kl_nats"] for case in seeds.values()), cells))
    if not rows:
        return ""
    head = ["layers, cut", "recipe", "tokens", "seeds"]
    head += [f"{what}, {kind}" for kind in _TEXTS for what in (f"KL (more than {reference})", "loss", "same top token")]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(cells) + " |" for *_, cells in sorted(rows)]
    return "\n".join(lines) + "\n"
