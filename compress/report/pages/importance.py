"""What the choice of layers was made on: each layer's score as a bar, kept and dropped told apart, for each measure."""

import math

from compress.report.pages import svg
from compress.report.pages.svg import Scale
from compress.report.run_files import Record, number

_WIDTH, _HEIGHT = 960.0, 240.0
_LEFT, _TOP, _BOTTOM = 74.0, 22.0, 200.0

_UNITS = {
    "block-influence": "1 − mean cosine of a layer's input and output",
    "angular": "mean angle between a layer's input and output, share of 180°",
    "perplexity": "rise of the loss without the layer, nats a token",
    "perplexity-greedy": "rise of the loss without the layer alone, nats a token",
    "taylor": "sum of |w · dL/dw| over the layer's matrices",
    "magnitude": "sum of |w| over the layer's matrices",
    "random": "a random draw",
}


def layer_scores(prune: Record | None) -> list[float]:
    """The score of each of the teacher's layers; empty when they were not measured."""
    found = [number(score) for score in (prune or {}).get("scores") or []]
    return [score for score in found if score is not None]


def measures(prune: Record | None) -> list[Record]:
    """What layers were scored by, each with `method`, `scores`, `dropped_layers` and `ranking` as in a prune.json: the
    one measure of a cut, or those that proposed cuts to compare; a random draw measures nothing."""
    criteria = ((prune or {}).get("ranking") or {}).get("criteria") or {}
    if not criteria:
        return [prune] if prune and layer_scores(prune) else []
    return [
        {
            "method": name,
            "scores": found["scores"],
            "dropped_layers": [i for i in range(len(found["scores"])) if i not in found["kept_layers"]],
            "ranking": found,
        }
        for name, found in criteria.items()
        if not name.startswith("random")
    ]


def score_unit(prune: Record) -> str:
    """What the scores of a prune.json are."""
    return _UNITS.get(str(prune.get("method")), str(prune.get("method")))


def drop_order(prune: Record) -> dict[int, int]:
    """Layer -> its place (1-based) in the order in which a greedy search dropped it."""
    steps = (prune.get("ranking") or {}).get("steps") or []
    return {step["dropped"]: place for place, step in enumerate(steps, start=1)}


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
