"""The picture of a score over training tokens."""

from compress.base.units import format_count
from compress.report.cells import percent
from compress.report.pages import svg
from compress.report.pages.svg import Scale
from compress.report.run_files import Record, lower_is_better

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 470.0, 250.0, 48.0, 112.0, 10.0, 210.0


def ability_figure(entry: Record) -> str:
    """A task's scores (see `compress.report.judge.ability.abilities`), in percent unless they are no shares."""
    points = [(float(point["tokens"]), point["value"], point["ci95"]) for point in entry["points"]]
    ends = [end for _, value, interval in points for end in (value, *(interval or ()))]
    ends += [] if entry["teacher"] is None else [entry["teacher"]]
    pad = 0.06 * ((max(ends) - min(ends)) or 1.0)
    share = not lower_is_better(entry["metric"]) and 0 <= min(ends) <= max(ends) <= 1
    low, high = min(ends) - pad, max(ends) + pad
    up = Scale(max(low, 0.0) if share else low, min(high, 1.0) if share else high, _BOTTOM, _TOP)
    across = Scale(0.0, points[-1][0] or 1.0, _LEFT, _WIDTH - _RIGHT)

    def told(value: float) -> str:
        return f"{percent(value)}%" if share else f"{value:.4g}"

    parts = [svg.line(_LEFT, up(tick), _WIDTH - _RIGHT, up(tick), "grid") for tick in up.ticks()]
    parts += [svg.text(_LEFT - 8, up(tick) + 4, told(tick), class_="tick end") for tick in up.ticks()]
    parts += [svg.text(across(t), _BOTTOM + 20, format_count(t), class_="tick middle") for t in across.ticks(5)]
    parts.append(svg.text((_LEFT + _WIDTH - _RIGHT) / 2, _BOTTOM + 35, "training tokens", class_="tick middle"))
    labels = [(f"student {told(points[-1][1])}", points[-1][1], "student bold")]
    if entry["teacher"] is not None:
        at = up(entry["teacher"])
        parts.append(svg.line(_LEFT, at, _WIDTH - _RIGHT, at, "reference teacher"))
        labels.append((f"teacher {told(entry['teacher'])}", entry["teacher"], "teacher"))
    for tokens, value, interval in points:
        if interval:
            parts.append(svg.line(across(tokens), up(interval[0]), across(tokens), up(interval[1]), "whisker student"))
        parts.append(svg.element("circle", cx=across(tokens), cy=up(value), r=2.6, class_="mark student"))
    parts.append(svg.path([(across(tokens), up(value)) for tokens, value, _ in points], "curve student bold"))
    places = svg.spread([up(value) for _, value, _ in labels], 16, _TOP + 4, _BOTTOM)
    for (label, _, style), y in zip(labels, places, strict=True):
        parts.append(svg.text(_WIDTH - _RIGHT + 9, y + 4, label, class_=f"label {style}"))
    return svg.figure(_WIDTH, _HEIGHT, f"{entry['task']} over training tokens", *parts)
