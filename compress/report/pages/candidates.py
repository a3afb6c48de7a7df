"""What candidate cuts lost, and how much of it a short heal gave back, as a picture: a line each."""

from compress.report.cells import layer_ranges
from compress.report.judge.choice import candidate_losses, candidates, compared_by, compared_in_words
from compress.report.pages import svg
from compress.report.pages.svg import Markup, Scale
from compress.report.run_files import Record

_WIDTH, _ROW, _TOP = 960.0, 30.0, 30.0
_LEFT, _RIGHT = 330.0, 880.0


def candidates_figure(prune: Record) -> str:
    """A row a candidate: a hollow mark where it was cut, a filled one where it was healed, the best first."""
    found = [(candidate, *candidate_losses(candidate, compared_by(prune))) for candidate in candidates(prune)]
    losses = [loss for _, *pair in found for loss in pair if loss is not None]
    if not losses:
        return ""
    across = Scale(min(losses), max(losses), _LEFT + 20, _RIGHT)
    bottom = _TOP + _ROW * len(found)
    parts = [svg.line(across(t), _TOP, across(t), bottom, "grid") for t in across.ticks()]
    parts += [svg.text(across(t), bottom + 20, f"{t:.4g}", class_="tick middle") for t in across.ticks()]
    for index, (candidate, before, after) in enumerate(found):
        y = _TOP + _ROW * (index + 0.5)
        parts += _row(candidate, before, after, y, across, best=index == 0)
    name, unit = compared_in_words(compared_by(prune))
    parts.append(svg.text((_LEFT + _RIGHT) / 2, bottom + 40, f"{name}, {unit}", class_="tick middle"))
    title = f"Of each candidate cut, before and after a short heal: {name}"
    return svg.figure(_WIDTH, bottom + 48, title, *parts)


def _row(
    candidate: Record, before: float | None, after: float | None, y: float, across: Scale, *, best: bool
) -> list[Markup]:
    named = ", ".join(candidate["proposed_by"])
    told = svg.element("title", f"layers {layer_ranges(candidate['kept_layers'])}, named by {named}")
    parts = [svg.text(0, y + 5, _shortened(named), class_="strong" if best else "tick")]
    if before is not None and after is not None:
        parts.append(svg.line(across(before), y, across(after), y, "thread"))
    for value, style in ((before, "mark hollow student_init"), (after, "mark student")):
        if value is not None:
            parts.append(svg.element("circle", told, cx=across(value), cy=y, r=5.5 if best else 4.5, class_=style))
    parts.append(svg.text(_WIDTH, y + 5, "–" if after is None else f"{after:.4f}", class_="tick end"))
    return parts


def _shortened(text: str, longest: int = 42) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
