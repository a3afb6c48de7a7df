"""sweep.html and sweep.md."""

from collections.abc import Mapping
from html import escape

from compress.base.units import format_count, format_seconds
from compress.report.cells import NONE, plus_minus
from compress.report.outputs import MARK
from compress.report.pages import svg
from compress.report.pages.figures import Points
from compress.report.pages.layout import page, section, table_section
from compress.report.pages.markdown import markdown_table, plain
from compress.report.pages.svg import Scale
from compress.report.run_files import Record
from compress.report.tables.table import Table

_COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8c564b", "#7b5cd6", "#e24a8d", "#5c8a00",
    "#9c2f2f", "#4b6584",
)  # fmt: skip
_STYLE = (
    ".students{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,230px),1fr));gap:4px 24px;"
    "margin-top:28px;font-size:14px}.students li{display:flex;gap:8px;overflow-wrap:anywhere}"
    ".students b{color:var(--c);min-width:1.6em;text-align:right}.figure .cell{fill:var(--student)}"
    ".heat .figure{max-width:560px}.figure .best{stroke:var(--ink);stroke-width:2;fill:none}"
)
_DOWN, _ACROSS = 44.0, 92.0


def html_sweep(report: Record) -> str:
    """The sweep as one self-contained page."""
    numbers = [case["number"] for case in report["cases"]]
    style = _STYLE + "".join(f".n{n}{{--c:{_COLOURS[(n - 1) % len(_COLOURS)]}}}" for n in numbers)
    names = "".join(
        f'<li class="n{case["number"]}"><b>{case["number"]}</b><span>{escape(case["name"])}</span></li>'
        for case in report["cases"]
    )
    header = (
        f'<header><p class="eyebrow">compress sweep</p><h1>{escape(report["name"])}</h1>'
        f'<p class="lead">{escape(report["headline"])}</p><ul class="students">{names}</ul></header>'
    )
    return page(report["name"], [header, _curves(report), _heat(report), table_section(results(report))], style)


def markdown_sweep(report: Record) -> str:
    """The sweep as GitHub-flavoured Markdown."""
    parts = [f"# {plain(report['name'])}", plain(report["headline"]), markdown_table(results(report)), MARK]
    return "\n\n".join(parts) + "\n"


def results(report: Record) -> Table:
    """A row for each student, the best first; those that have none last."""
    cases = sorted(report["cases"], key=lambda case: (case.get("value") is None, case.get("value"), case["number"]))
    tasks = list(dict.fromkeys(task for case in cases for task in case.get("tasks", {})))
    sizes = len({case["params"] for case in cases if case.get("params") is not None}) > 1
    rows = []
    for case in cases:
        beside = case.get("beside_winner")
        won = case["number"] == report["winner"]
        rows.append(
            [
                str(case["number"]),
                case["name"],
                _nats(case.get("value"), case.get("stderr")),
                "the least" if won else NONE if beside is None else _difference(beside),
                NONE if beside is None else f"{beside['p_holm']:.2g}",
                _nats(case.get("loss_nats"), None),
                *(plus_minus(case.get("tasks", {}).get(task), _metric(case, task)) for task in tasks),
                *([NONE if case.get("params") is None else format_count(case["params"])] if sizes else []),
                case["failed"] or _made(case),
            ]
        )
    start = "" if report["start"] is None else f" What they began with has {report['start']:.4f}."
    note = (
        f"{_title(report)} in nats a token, ± its standard error over held-out documents.{start} More "
        "than the least: paired over the same documents, with 95% intervals; p of a sign-flip test, adjusted for the "
        "number of students (Holm). Scores in percent, ± a standard error."
    )
    columns = ["No.", "Student", report["measure"], "More than the least", "p", "Held-out loss", *tasks]
    columns += ["Parameters"] * sizes + ["Training"]
    return Table(title="Students", note=note, columns=columns, rows=rows, text_columns=2)


def _title(report: Record) -> str:
    """The measure as a sentence begins with it."""
    measure = str(report["measure"])
    return measure[:1].upper() + measure[1:]


def _made(case: Record) -> str:
    if case.get("tokens") is None or case.get("seconds") is None:
        return "not measured"
    return f"{format_count(case['tokens'])} in {format_seconds(case['seconds'])}"


def _metric(case: Record, task: str) -> str | None:
    entry = case.get("tasks", {}).get(task)
    return None if entry is None else str(entry["metric"])


def _nats(value: float | None, stderr: float | None) -> str:
    return NONE if value is None else f"{value:.4f}" + (f" ± {stderr:.4f}" if stderr is not None else "")


def _difference(beside: Record) -> str:
    low, high = beside["ci95"]
    return f"{beside['difference']:+.4f} [{low:+.4f}, {high:+.4f}]".replace("-", "\N{MINUS SIGN}")


def _curves(report: Record) -> str:
    pictures = "".join(
        f"<figure><figcaption>{escape(title)}</figcaption>{curves_figure(title, curves)}</figure>"
        for title, curves in report["curves"].items()
    )
    caption = "Held-out rows in bold, training rows faint; numbers at the right are those of the students above."
    return section("How they healed", caption, f'<div class="pair">{pictures}</div>') if pictures else ""


def curves_figure(title: str, curves: Mapping[str, Mapping[str, Points]]) -> str:
    """All students' losses over training tokens, each named by its number at the right."""
    width, left, right, top = 470.0, 52.0, 92.0, 10.0
    bottom = max(250.0, top + 16.0 * len(curves))
    shown = {key: [tuple(p) for p in found["heldout"] or found["training"]] for key, found in curves.items()}
    faint = {key: [tuple(p) for p in found["training"]] for key, found in curves.items() if found["heldout"]}
    points = [point for line in (*shown.values(), *faint.values()) for point in line]
    bold = sorted(y for line in shown.values() for _, y in line)
    low, high = bold[0], max(bold[-1], sorted(y for _, y in points)[int(0.98 * (len(points) - 1))])
    pad = 0.06 * ((high - low) or 1.0)
    across = Scale(0.0, max(x for x, _ in points) or 1.0, left, width - right)
    up = Scale(low - pad, high + pad, bottom, top)
    parts = [svg.line(left, up(t), width - right, up(t), "grid") for t in up.ticks()]
    parts += [svg.text(left - 8, up(t) + 4, f"{t:.4g}", class_="tick end") for t in up.ticks()]
    parts += [svg.text(across(t), bottom + 20, format_count(t), class_="tick middle") for t in across.ticks(5)]
    parts.append(svg.text((left + width - right) / 2, bottom + 35, "training tokens", class_="tick middle"))

    def inside(y: float) -> float:
        return min(max(up(y), top), bottom)

    for lines, style in ((faint, "faint"), (shown, "bold")):
        for key, line in lines.items():
            parts.append(svg.path([(across(x), inside(y)) for x, y in line], f"curve n{key} {style}"))
    ends = svg.spread([inside(line[-1][1]) for line in shown.values()], 15, top + 4, bottom)
    for (key, line), y in zip(shown.items(), ends, strict=True):
        parts.append(svg.text(width - right + 8, y + 4, f"{key}: {line[-1][1]:.4g}", class_=f"label n{key} bold"))
    return svg.figure(width, bottom + 40, title, *parts)


def _heat(report: Record) -> str:
    heat = report["heat"]
    if heat is None:
        return ""
    caption = f"{_title(report)}, nats a token: the darker the less; the least has a border."
    return section("Two keys", caption, f"<div class='heat'>{heat_figure(heat)}</div>")


def heat_figure(heat: Record) -> str:
    """A cell for each pair of values, with its number in it."""
    downs, acrosses = heat["values"][heat["down"]], heat["values"][heat["across"]]
    values = [value for *_, value in heat["cells"]]
    low, high = min(values), max(values)
    left, top = 20.0 + 8.0 * max(len(heat["down"].rpartition(".")[2]), *(len(v) for v in downs)), 48.0
    parts = [
        svg.text(0, 18, f"{heat['down'].rpartition('.')[2]} down, {heat['across'].rpartition('.')[2]} across"),
        *(svg.text(left + _ACROSS * (i + 0.5), top - 8, v, class_="tick middle") for i, v in enumerate(acrosses)),
        *(svg.text(left - 10, top + _DOWN * (i + 0.5) + 4, v, class_="tick end") for i, v in enumerate(downs)),
    ]
    for down, across, value in heat["cells"]:
        x, y = left + _ACROSS * acrosses.index(across), top + _DOWN * downs.index(down)
        share = 1.0 - (value - low) / ((high - low) or 1.0)
        place = {"x": x + 2, "y": y + 2, "width": _ACROSS - 4, "height": _DOWN - 4, "rx": 4}
        parts.append(svg.element("rect", **place, class_="cell", opacity=0.08 + 0.5 * share))
        if value == low:
            parts.append(svg.element("rect", **place, class_="best"))
        parts.append(svg.text(x + _ACROSS / 2, y + _DOWN / 2 + 5, f"{value:.4f}", class_="middle"))
    size = (max(left + _ACROSS * len(acrosses) + 4, 420.0), top + _DOWN * len(downs) + 4)
    return svg.figure(*size, "The measure for each pair of values", *parts)
