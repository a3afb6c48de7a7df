"""The loss curves of several runs in one picture, soft left and hard right, each run with a number and a colour."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from compress.base.units import format_count
from compress.report.pages import svg
from compress.report.pages.figures import Points, curve
from compress.report.pages.layout import section
from compress.report.pages.svg import Scale
from compress.report.run_files import Record

_COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8c564b", "#7b5cd6", "#e24a8d", "#5c8a00",
    "#9c2f2f", "#4b6584",
)  # fmt: skip
_PANELS = (
    ("Soft loss: KL from the teacher at temperature 1", "heldout_kl", None),
    ("Soft loss: ULD from the teacher at temperature 1", "heldout_uld", None),
    ("Hard loss: next-token cross-entropy", "heldout_hard", "hard"),
)
"""Title, column of held-out rows, and of training rows that have the same measure."""

Curves = Mapping[str, Mapping[str, Mapping[str, Points]]]
"""Title of a panel -> key of a run -> its `training` and `heldout` points."""


def colour(number: int) -> str:
    """Of the run with this number, from 1 on."""
    return _COLOURS[(number - 1) % len(_COLOURS)]


def number_style(number: int, *more: str) -> str:
    """The rule that gives what belongs to a number its colour: class `n1`, and more classes."""
    return f"{','.join(f'.{name}' for name in (f'n{number}', *more))}{{--c:{colour(number)}}}"


def numbered(entries: Sequence[tuple[int, str]]) -> str:
    """A list of what the numbers stand for: (number, its name as HTML)."""
    items = "".join(
        f'<li class="n{number}"><strong>{number}</strong><span>{name}</span></li>' for number, name in entries
    )
    return f'<ul class="numbered">{items}</ul>'


def loss_curves(logs: Mapping[str, tuple[Sequence[Record], Sequence[Record]]]) -> dict[str, Any]:
    """The `Curves` of runs, each as its logged steps with a loss and with a held-out loss, of measures that all have.

    What students minimised by a temperature or a divergence of their own would say nothing beside each other.
    """
    found = {}
    for title, key, logged in _PANELS:
        curves = {
            name: {"training": [] if logged is None else curve(steps, logged), "heldout": curve(heldout, key)}
            for name, (steps, heldout) in logs.items()
        }
        if curves and all(each["heldout"] for each in curves.values()):
            found[title] = curves
    return found


def curves_section(curves: Curves, numbers: Mapping[str, int]) -> str:
    """The pictures side by side; empty where nothing was logged."""
    pictures = "".join(
        f"<figure><figcaption>{escape(title)}</figcaption>{curves_figure(title, lines, numbers)}</figure>"
        for title, lines in curves.items()
    )
    caption = "Held-out rows in bold, training rows faint; numbers at the right are those of the list above."
    return section("How they healed", caption, f'<div class="pair">{pictures}</div>') if pictures else ""


def curves_figure(title: str, curves: Mapping[str, Mapping[str, Points]], numbers: Mapping[str, int]) -> str:
    """All runs' losses over training tokens, each named by its number at the right."""
    width, left, right, top = 470.0, 52.0, 92.0, 10.0
    bottom = max(250.0, top + 16.0 * len(curves))
    shown = {numbers[key]: [tuple(p) for p in found["heldout"] or found["training"]] for key, found in curves.items()}
    faint = {numbers[key]: [tuple(p) for p in found["training"]] for key, found in curves.items() if found["heldout"]}
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
        for number, line in lines.items():
            if line:
                parts.append(svg.path([(across(x), inside(y)) for x, y in line], f"curve n{number} {style}"))
    ends = svg.spread([inside(line[-1][1]) for line in shown.values()], 15, top + 4, bottom)
    for (number, line), y in zip(shown.items(), ends, strict=True):
        parts.append(svg.text(width - right + 8, y + 4, f"{number}: {line[-1][1]:.4g}", class_=f"label n{number} bold"))
    return svg.figure(width, bottom + 40, title, *parts)
