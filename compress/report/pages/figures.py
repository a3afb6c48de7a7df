"""The pictures of report.html as inline SVG: scores, losses, layers. Each model has one colour and one marker."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from compress.base.units import format_count
from compress.report.cells import percent, share_kept, short
from compress.report.pages import svg
from compress.report.pages.svg import Markup, Scale
from compress.report.run_files import Record, RunFiles, layers_of, number
from compress.report.tables.table import compared, labels, main_tasks, retold

Points = list[tuple[float, float]]

_WIDTH = 960.0
_ROW, _MARK, _TOP, _COLUMN, _KEPT = 54.0, 13.0, 46.0, 66.0, 104.0
_CIRCLES, _SQUARES = ("student", "m1", "m4", "m7"), ("student_init", "m2", "m5", "m8")
_LONGEST_NAME, _HALF_TICK = 32, 12.0
_CURVE_POINTS = 240
_TITLES = {
    "soft": "Soft loss: divergence from the teacher",
    "hard": "Hard loss: next-token cross-entropy",
    "kl": "KL from the teacher at temperature 1",
    "uld": "ULD from the teacher at temperature 1",
    "hidden": "Hidden states: distance from the teacher's",
    "similarity": "Similarity of tokens: distance from the teacher's",
}
_LOG_RATIO = 5.0
_DASHES, _LONGEST_SOURCE = 4, 14
_SAME_ROWS_NATS = 0.02


def scores_figure(report: Record, *, numbers: bool = True) -> str:
    """A row a task: each model's score with its 95% interval, a mark at chance, and the numbers at the right."""
    keys = labels(report)
    shown = {}
    for name, entry in main_tasks(report).items():
        values = [entry[key]["value"] for key in keys if key in entry]
        if values and min(values) >= 0 and max(values) <= 1:
            shown[name] = entry
    if not shown:
        return ""
    kept = _kept(report) if numbers else {}
    titles = {name: _label(name, entry, list(keys)) for name, entry in shown.items()}
    left = 26 + max(max(7.8 * len(title), 6.2 * len(detail)) for title, detail in titles.values())
    right = _WIDTH - (_COLUMN * len(keys) if numbers else _HALF_TICK) - (_KEPT if kept else 0)
    row = max(_ROW, _MARK * (len(keys) + 1))
    tops = [v for e in shown.values() for k in keys if k in e for v in (e[k]["value"], *(e[k]["ci95"] or ()))]
    tops += [e["chance"] for e in shown.values() if e["chance"] is not None]
    step = 0.1 if max(tops) <= 0.5 else 0.2
    scale = Scale(0.0, min(1.0, max(step, math.ceil(max(tops) / step - 1e-9) * step)), left, right - 12)
    bottom = _TOP + row * len(shown)
    parts = [svg.line(scale(t), _TOP, scale(t), bottom, "grid") for t in scale.ticks(6)]
    parts += [svg.text(scale(t), bottom + 20, f"{t:.0%}", class_="tick middle") for t in scale.ticks(6)]
    parts += _score_headings(keys, right, bool(kept)) if numbers else []
    for index, (name, entry) in enumerate(shown.items()):
        middle = _TOP + row * (index + 0.5)
        parts.append(svg.line(0, middle - row / 2, _WIDTH, middle - row / 2, "rule"))
        title, detail = titles[name]
        parts += [svg.text(0, middle - 3, title, class_="name"), svg.text(0, middle + 15, detail, class_="tick")]
        weak = {v["model"] for v in report["verdicts"] if v["task"] == name and v["level"] != "fine"}
        parts += _score_marks(entry, keys, scale, (middle, row), weak, first=index == 0)
        parts += _score_numbers(entry, list(keys), right, middle) if numbers else []
        if name in kept:
            parts.append(svg.text(_WIDTH, middle + 5, kept[name], class_="number end strong"))
    parts.append(svg.line(0, bottom, _WIDTH, bottom, "rule"))
    return svg.figure(_WIDTH, bottom + 28, "Scores of each model by task, with 95% intervals", *parts)


def _kept(report: Record) -> dict[str, str]:
    """Retention above chance by task, of the smallest student that has any."""
    table = next(reversed(compared(report).values()), {})
    return {name: share_kept(entry["chance_corrected"]) for name, entry in table.items()}


def _score_headings(keys: Mapping[str, str], right: float, kept: bool) -> list[Markup]:
    parts = [
        svg.text(right + _COLUMN * (i + 1), _TOP - 14, label, class_=f"name end {key}")
        for i, (key, label) in enumerate(keys.items())
    ]
    if kept:
        parts += [
            svg.text(_WIDTH, _TOP - 28, "kept", class_="tick end"),
            svg.text(_WIDTH, _TOP - 14, "above chance", class_="tick end"),
        ]
    return parts


def _label(name: str, entry: Record, keys: Sequence[str]) -> tuple[str, str]:
    """A task's name, cut when very long, and what was measured."""
    sample = next(entry[key] for key in keys if key in entry)
    shots = "" if sample["num_fewshot"] is None else f" · {sample['num_fewshot']}-shot"
    short = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
    return short, f"{entry['metric']}{shots} · {sample['n']:,} items"


def _score_marks(
    entry: Record, keys: Mapping[str, str], scale: Scale, place: tuple[float, float], weak: set[str], *, first: bool
) -> list[Markup]:
    """Marks in a row whose middle and height are `place`; those of `weak` models are hollow."""
    middle, row = place
    parts = []
    if entry["chance"] is not None:
        at = scale(entry["chance"])
        parts.append(svg.line(at, middle - row / 2 + 5, at, middle + row / 2 - 5, "chance"))
        if first:
            parts.append(svg.text(at, _TOP - 8, "chance", class_="tick middle"))
    found = [key for key in keys if key in entry]
    for index, key in enumerate(found):
        score, y = entry[key], middle + _MARK * (index - (len(found) - 1) / 2)
        told = f"{keys[key]}: {percent(score['value'])}%"
        if score["ci95"]:
            low, high = score["ci95"]
            told += f", 95% interval {percent(low)} to {percent(high)}"
            parts.append(svg.line(scale(max(low, 0)), y, scale(min(high, scale.high)), y, f"whisker {key}"))
        hollow = " hollow" if key in weak and score["versus_chance"] is not None else ""
        parts.append(marker(key, scale(score["value"]), y, f"mark {key}{hollow}", told))
    return parts


def _score_numbers(entry: Record, keys: Sequence[str], right: float, middle: float) -> list[Markup]:
    return [
        svg.text(right + _COLUMN * (i + 1), middle + 5, percent(entry[key]["value"]), class_=f"number end {key}")
        for i, key in enumerate(keys)
        if key in entry
    ]


def marker(key: str, x: float, y: float, class_: str, told: str = "") -> Markup:
    """Teacher: diamond. Cut: square. Healed: circle. Of compared models m0, m1, ... they alternate. `told` on hover."""
    title = svg.element("title", told) if told else ""
    if key in _CIRCLES:
        return svg.element("circle", title, cx=x, cy=y, r=5, class_=class_)
    if key in _SQUARES:
        return svg.element("rect", title, x=x - 4.3, y=y - 4.3, width=8.6, height=8.6, class_=class_)
    return svg.element("path", title, d=f"M{x - 6:.2f} {y:.2f}l6 -6l6 6l-6 6z", class_=class_)


@dataclass(frozen=True, kw_only=True, slots=True)
class LossPanel:
    """One loss over training tokens: points are (tokens, nats a token); references are (model key, its name, nats);
    `sources` are held-out points of each source of a blend, by its name."""

    title: str
    training: Points
    heldout: Points
    references: list[tuple[str, str, float]]
    sources: dict[str, Points] = field(default_factory=dict)


def loss_panels(report: Record, run: RunFiles) -> list[LossPanel]:
    """Each term of the loss, and what held-out rows were measured by besides; the total when no term was logged. Of a
    training that learned of its own text as well, the steps on the data."""
    panels: list[LossPanel] = []
    steps = [row for row in run.train_rows if not row.get("on_policy")] or run.train_rows
    for key in _terms(run.heldout_rows):
        training, held = curve(steps, key), curve(run.heldout_rows, f"heldout_{key}")
        if training or (held and held not in [panel.heldout for panel in panels]):
            references = _references(report, held) if key == "hard" else []
            title = _TITLES.get(key, f"Term {key}")
            is_kl = held == curve(run.heldout_rows, "heldout_kl")
            sources = _by_source(run.heldout_rows, "kl" if is_kl else key)
            panels.append(
                LossPanel(title=title, training=_thin(training), heldout=held, references=references, sources=sources)
            )
    if not panels and (training := curve(steps, "loss")):
        held = curve(run.heldout_rows, "heldout_loss")
        panels.append(LossPanel(title="Loss", training=_thin(training), heldout=held, references=[]))
    return panels


def _terms(heldout_rows: Sequence[Record]) -> list[str]:
    """Names of the columns of losses, but for the total: those that held-out rows have."""
    logged = (key.removeprefix("heldout_") for row in heldout_rows for key in row if key.startswith("heldout_"))
    names = (name for name in dict.fromkeys((*_TITLES, *logged)) if "/" not in name)
    return [name for name in names if name != "loss" and not name.endswith("_stderr")]


def _by_source(heldout_rows: Sequence[Record], key: str) -> dict[str, Points]:
    """The curve of a measure on each source of a blend, by its name."""
    start = f"heldout_{key}/"
    columns = dict.fromkeys(column for row in heldout_rows for column in row if column.startswith(start))
    return {column.removeprefix(start): curve(heldout_rows, column) for column in columns}


def curve(rows: Sequence[Record], key: str) -> Points:
    """A column of logged rows over tokens."""
    pairs = [(number(row.get("tokens")), number(row.get(key))) for row in rows]
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def _thin(points: Points) -> Points:
    """At most `_CURVE_POINTS` points: each the mean of a run of neighbours."""
    size = max(1, math.ceil(len(points) / _CURVE_POINTS))
    runs = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def _references(report: Record, heldout: Points) -> list[tuple[str, str, float]]:
    """Held-out losses of teacher and cut student, when the evaluation read the rows that training held out.

    It did when the healed student's loss there is the last or the best that training logged.
    """
    losses = {key: number((report[key].get("heldout") or {}).get("loss_nats")) for key in labels(report)}
    healed = losses.get("student")
    logged = [heldout[-1][1], min(y for _, y in heldout)] if heldout else []
    if healed is None or not any(abs(healed - loss) <= _SAME_ROWS_NATS for loss in logged):
        return []
    others = [key for key in losses if key != "student" and not (retold(report) and key.startswith("teacher"))]
    return [(key, labels(report)[key], loss) for key in others if (loss := losses[key]) is not None]


def loss_figure(panel: LossPanel) -> str:
    """Training and held-out loss over tokens; a logarithmic axis when the values span a factor of five."""
    width, height, left, top, bottom = 470.0, 290.0, 44.0, 10.0, 250.0
    named = [
        "held-out",
        *(name for _, name, _ in panel.references),
        *(short(s, _LONGEST_SOURCE) for s in panel.sources),
    ]
    right = 58.0 + 7.0 * max(map(len, named))
    measured = [point for points in (panel.training, panel.heldout, *panel.sources.values()) for point in points]
    values = [y for _, y in measured] + [y for *_, y in panel.references]
    low, high = min(values), max(values)
    log = low > 0 and high / low > _LOG_RATIO
    pad = 0.0 if log else 0.06 * ((high - low) or 1.0)
    low, high = (low / 1.12, high * 1.12) if log else (low - pad, high + pad)
    across = Scale(0.0, max(x for x, _ in measured) or 1.0, left, width - right)
    up = Scale(low, high, bottom, top, log)
    parts = [svg.line(left, up(t), width - right, up(t), "grid") for t in up.ticks()]
    parts += [svg.text(left - 8, up(t) + 4, f"{t:.4g}", class_="tick end") for t in up.ticks()]
    parts += [svg.text(across(t), bottom + 20, format_count(t), class_="tick middle") for t in across.ticks(5)]
    parts.append(svg.text((left + width - right) / 2, bottom + 35, "training tokens", class_="tick middle"))
    parts += [svg.line(left, up(y), width - right, up(y), f"reference {key}") for key, _, y in panel.references]
    ends = [(f"{label} {y:.2f}", y, key) for key, label, y in panel.references]
    for points, name, style in ((panel.training, "training", "faint"), (panel.heldout, "held-out", "bold")):
        if points:
            parts.append(svg.path([(across(x), up(y)) for x, y in points], f"curve student {style}"))
            ends.append((f"{name} {points[-1][1]:.2f}", points[-1][1], f"student {style}"))
    for count, (name, points) in enumerate(panel.sources.items()):
        style = f"source dash{count % _DASHES}"
        parts.append(svg.path([(across(x), up(y)) for x, y in points], f"curve {style}"))
        ends.append((f"{short(name, _LONGEST_SOURCE)} {points[-1][1]:.2f}", points[-1][1], style))
    if len(panel.heldout) <= 30:
        parts += [svg.element("circle", cx=across(x), cy=up(y), r=2.6, class_="mark student") for x, y in panel.heldout]
    for (label, _, style), y in zip(ends, svg.spread([up(v) for _, v, _ in ends], 16, top + 4, bottom), strict=True):
        parts.append(svg.text(width - right + 9, y + 4, label, class_=f"label {style}"))
    return svg.figure(width, height, panel.title, *parts)


def layers_figure(prune: Record) -> str:
    """The teacher's blocks in a row, the student's under them, and a line from each kept block to its new place."""
    kept, dropped = layers_of(prune)
    if not kept:
        return ""
    count, left = len(kept) + len(dropped), 74.0
    pitch = min(54.0, (_WIDTH - left) / count)
    size = pitch * 0.84
    height = min(size, 30.0)
    under = height + 54
    shift = left + (count - len(kept)) * pitch / 2
    number_every = 1 if pitch >= 20 else math.ceil(20 / pitch)
    parts = [
        svg.text(0, height / 2 + 5, "teacher", class_="name teacher"),
        svg.text(0, under + height / 2 + 5, "student", class_="name student"),
    ]
    for layer in range(count):
        x = left + layer * pitch
        stays = layer in kept
        parts.append(
            svg.element(
                "rect", x=x, y=1, width=size, height=height, rx=4, class_="block teacher" if stays else "block gone"
            )
        )
        if layer % number_every == 0:
            parts.append(
                svg.text(x + size / 2, height / 2 + 5, str(layer), class_="inside" if stays else "tick middle")
            )
    for place, layer in enumerate(sorted(kept)):
        x, origin = shift + place * pitch, left + layer * pitch
        parts.append(svg.line(origin + size / 2, height + 5, x + size / 2, under - 4, "thread"))
        parts.append(svg.element("rect", x=x, y=under, width=size, height=height, rx=4, class_="block student"))
        if place % number_every == 0:
            parts.append(svg.text(x + size / 2, under + height / 2 + 5, str(place), class_="inside"))
    told = f"{len(kept)} of {count} layers kept"
    return svg.figure(_WIDTH, under + height + 2, told, *parts)
