"""How hard the text was, as a picture: a histogram of scores, with what was learned from told apart."""

from compress.report.judge.selection import measured_in, taken_bins
from compress.report.pages import svg
from compress.report.pages.svg import Scale
from compress.report.run_files import Record

_WIDTH, _HEIGHT = 960.0, 240.0
_LEFT, _TOP, _BOTTOM = 74.0, 12.0, 190.0


def selection_figure(selection: Record) -> str:
    """A bar a bin of scores, filled where they lie between the lowest and the highest that was taken."""
    edges, counts = (selection["histogram"][name] for name in ("edges", "counts"))
    across, up = Scale(edges[0], edges[-1], _LEFT, _WIDTH), Scale(0.0, max(counts) or 1.0, _BOTTOM, _TOP)
    parts = [svg.line(_LEFT, up(tick), _WIDTH, up(tick), "grid") for tick in up.ticks(4)]
    parts += [svg.text(_LEFT - 10, up(tick) + 4, f"{tick:,.0f}", class_="tick end") for tick in up.ticks(4)]
    parts += [svg.text(across(tick), _BOTTOM + 20, f"{tick:.3g}", class_="tick middle") for tick in across.ticks(8)]
    for low, high, count, taken in zip(edges, edges[1:], counts, taken_bins(selection), strict=False):
        told = svg.element("title", f"{low:.3g} to {high:.3g}: {count:,}, {'taken' if taken else 'left out'}")
        style = "block student" if taken else "block gone"
        box = {"x": across(low), "y": up(count), "width": across(high) - across(low) - 1, "height": _BOTTOM - up(count)}
        parts.append(svg.element("rect", told, **box, class_=style))
    parts.append(svg.line(_LEFT, _BOTTOM, _WIDTH, _BOTTOM, "rule"))
    parts.append(svg.text((_LEFT + _WIDTH) / 2, _HEIGHT - 6, measured_in(selection), class_="tick middle"))
    return svg.figure(_WIDTH, _HEIGHT, f"Histogram: {measured_in(selection)}, of each of the {selection['of']}", *parts)
