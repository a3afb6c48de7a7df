"""The curve of size against nearness to the teacher, as inline SVG."""

from collections.abc import Sequence

from compress.base.units import format_count
from compress.report.pages import svg
from compress.report.pages.figures import marker
from compress.report.pages.svg import Scale
from compress.report.run_files import Record, number

_KEYS = {"teacher": "teacher", "healed": "student", "grown": "student"}


def sizes_figure(found: Sequence[Record]) -> str:
    """KL from the teacher over parameters, a mark for each model; empty where there are not three that have both."""
    points = [
        (each, params, kl)
        for each in found
        if (params := number(each["params"])) is not None and (kl := number(each["kl_nats"])) is not None
    ]
    if len(points) < 3:
        return ""
    width, height, left, right, top, bottom = 640.0, 300.0, 52.0, 60.0, 14.0, 254.0
    lowest, highest = (edge(params for _, params, _ in points) for edge in (min, max))
    pad = 0.05 * (highest - lowest)
    across = Scale(lowest - pad, highest + pad, left, width - right)
    up = Scale(0.0, 1.08 * max(kl for *_, kl in points) or 1.0, bottom, top)
    parts = [svg.line(left, up(t), width - right, up(t), "grid") for t in up.ticks()]
    parts += [svg.text(left - 8, up(t) + 4, f"{t:.4g}", class_="tick end") for t in up.ticks()]
    parts += [svg.text(across(t), bottom + 20, format_count(t), class_="tick middle") for t in across.ticks()]
    parts.append(svg.text((left + width - right) / 2, bottom + 38, "parameters", class_="tick middle"))
    parts.append(svg.path([(across(params), up(kl)) for _, params, kl in points], "curve student bold"))
    for each, params, kl in points:
        key, told = _KEYS[each["model"]], f"{each['model']}, {each['layers']} layers: KL {kl:.4f}"
        hollow = " hollow" if each["model"] == "grown" else ""
        parts.append(marker(key, across(params), up(kl), f"mark {key}{hollow}", told))
        parts.append(svg.text(across(params) + 9, up(kl) - 7, str(each["layers"]), class_="tick"))
    return svg.figure(width, height, "KL from the teacher against parameters, by number of layers", *parts)
