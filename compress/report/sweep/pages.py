"""sweep.html and sweep.md."""

from html import escape

from compress.base.units import format_count, format_seconds
from compress.report.cells import NONE, more_nats, nats, plus_minus
from compress.report.outputs import MARK
from compress.report.pages import svg
from compress.report.pages.curves import curves_section, number_style, numbered
from compress.report.pages.layout import page, section, table_section
from compress.report.pages.markdown import markdown_table, plain
from compress.report.run_files import Record
from compress.report.tables.table import Table

_STYLE = (
    ".figure .cell{fill:var(--student)}.heat>.figure{min-width:0;width:var(--width)}"
    ".figure .best{stroke:var(--ink);stroke-width:2;fill:none}"
)
_DOWN, _ACROSS, _LETTER = 44.0, 92.0, 7.4


def html_sweep(report: Record) -> str:
    """The sweep as one self-contained page."""
    style = _STYLE + "".join(number_style(case["number"]) for case in report["cases"])
    names = numbered([(case["number"], escape(case["name"])) for case in report["cases"]])
    header = (
        f'<header><p class="eyebrow">compress sweep</p><h1>{escape(report["name"])}</h1>'
        f'<p class="lead">{escape(report["headline"])}</p>{names}</header>'
    )
    curves = curves_section(report["curves"], {key: int(key) for lines in report["curves"].values() for key in lines})
    return page(report["name"], [header, curves, _heat(report), table_section(results(report))], style)


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
        more, p_value = more_nats(case.get("beside_winner"))
        won = case["number"] == report["winner"]
        rows.append(
            [
                str(case["number"]),
                case["name"],
                nats(case.get("value"), case.get("stderr")),
                "the least" if won else more,
                p_value,
                nats(case.get("loss_nats"), None),
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


def _heat(report: Record) -> str:
    heat = report["heat"]
    if heat is None:
        return ""
    caption = f"{_title(report)}, nats a token: the darker the less; the least has a border."
    return section("Two keys", caption, heat_figure(heat))


def heat_figure(heat: Record) -> str:
    """A cell for each pair of values, with its number in it."""
    downs, acrosses = heat["values"][heat["down"]], heat["values"][heat["across"]]
    values = [value for *_, value in heat["cells"]]
    low, high = min(values), max(values)
    left, top = 20.0 + _LETTER * max(map(len, downs)), 48.0
    wide = max(_ACROSS, 12 + _LETTER * max(map(len, acrosses)))
    parts = [
        svg.text(0, 18, f"{heat['down'].rpartition('.')[2]} down, {heat['across'].rpartition('.')[2]} across"),
        *(svg.text(left + wide * (i + 0.5), top - 8, v, class_="tick middle") for i, v in enumerate(acrosses)),
        *(svg.text(left - 10, top + _DOWN * (i + 0.5) + 4, v, class_="tick end") for i, v in enumerate(downs)),
    ]
    for down, across, value in heat["cells"]:
        x, y = left + wide * acrosses.index(across), top + _DOWN * downs.index(down)
        share = 1.0 - (value - low) / ((high - low) or 1.0)
        place = {"x": x + 2, "y": y + 2, "width": wide - 4, "height": _DOWN - 4, "rx": 4}
        parts.append(svg.element("rect", **place, class_="cell", opacity=0.08 + 0.5 * share))
        if value == low:
            parts.append(svg.element("rect", **place, class_="best"))
        parts.append(svg.text(x + wide / 2, y + _DOWN / 2 + 5, f"{value:.4f}", class_="middle"))
    words = _LETTER * sum(len(heat[key].rpartition(".")[2]) for key in ("down", "across")) + 110
    width = max(left + wide * len(acrosses) + 4, words)
    figure = svg.figure(width, top + _DOWN * len(downs) + 4, "The measure for each pair of values", *parts)
    return f'<div class="wide heat" style="--width:{width:.0f}px">{figure}</div>'
