"""What layers were chosen by as a picture: each layer's score as a bar, kept and dropped told apart."""

import math

from compress.report.judge.choice import drop_order, layer_scores, score_unit
from compress.report.pages import svg
from compress.report.pages.svg import Scale
from compress.report.run_files import Record

_WIDTH, _HEIGHT = 960.0, 240.0
_LEFT, _TOP, _BOTTOM = 74.0, 22.0, 200.0


def importance_figure(prune: Record) -> str:
    """A bar a layer, filled where it stays; the place in a greedy search's order stands over a dropped one."""
    scores, dropped, order = layer_scores(prune), set(prune.get("dropped_layers") or ()), drop_order(prune)
    if not scores:
        return ""
    pitch = min(54.0, (_WIDTH - _LEFT) / len(scores))
    low, high = min(0.0, *scores), max(0.0, *scores)
    up = Scale(low, high or 1.0, _BOTTOM, _TOP)
    right = _LEFT + pitch * len(scores)
    parts = [svg.line(_LEFT, up(t), right, up(t), "grid") for t in up.ticks()]
    parts += [svg.text(_LEFT - 10, up(t) + 4, f"{t:.3g}", class_="tick end") for t in up.ticks()]
    number_every = 1 if pitch >= 20 else math.ceil(20 / pitch)
    for layer, score in enumerate(scores):
        x, top, height = _LEFT + pitch * (layer + 0.08), up(max(score, 0.0)), abs(up(score) - up(0.0))
        told = svg.element("title", f"layer {layer}: {score:.4g}, {'dropped' if layer in dropped else 'kept'}")
        style = "block gone" if layer in dropped else "block teacher"
        parts.append(
            svg.element("rect", told, x=x, y=top, width=pitch * 0.84, height=max(height, 1.5), rx=2, class_=style)
        )
        middle = x + pitch * 0.42
        if layer in order:
            parts.append(svg.text(middle, top - 6, f"{order[layer]}.", class_="tick middle"))
        if layer % number_every == 0:
            parts.append(svg.text(middle, _BOTTOM + 20, str(layer), class_="tick middle"))
    parts.append(svg.line(_LEFT, up(0.0), right, up(0.0), "rule"))
    parts.append(svg.text((_LEFT + right) / 2, _HEIGHT - 2, "layer of the teacher", class_="tick middle"))
    return svg.figure(_WIDTH, _HEIGHT, f"Importance of each layer: {score_unit(prune)}", *parts)
