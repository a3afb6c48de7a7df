"""A few SVG primitives: escaped elements, scales, ticks, and labels that do not overlap.

Colours come from the page's style sheet through classes, so figures follow light and dark mode.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


class Markup(str):
    """Text that is SVG already. Any other text is content, which `element` escapes."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str | float) -> Markup:
    """One element. `class_` is written `class`, `font_size` `font-size`; numbers get at most two decimals."""
    pairs = (
        f' {key.rstrip("_").replace("_", "-")}="{escape(value) if isinstance(value, str) else _short(value)}"'
        for key, value in attributes.items()
    )
    start = f"{tag}{''.join(pairs)}"
    body = "".join(child if isinstance(child, Markup) else escape(child) for child in children)
    return Markup(f"<{start}>{body}</{tag}>" if body else f"<{start}/>")


def text(x: float, y: float, content: str, **attributes: str | float) -> Markup:
    """A text element at (x, y)."""
    return element("text", content, x=x, y=y, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def path(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    """A line through points."""
    steps = "L".join(f"{_short(x)} {_short(y)}" for x, y in points)
    return element("path", d=f"M{steps}", class_=class_)


def figure(width: float, height: float, label: str, *children: str, class_: str = "") -> Markup:
    """An inline SVG picture with a text alternative."""
    box = f"0 0 {_short(width)} {_short(height)}"
    return element("svg", *children, viewBox=box, role="img", aria_label=label, class_=f"figure {class_}".strip())


def _short(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps [low, high] to [start, end] on the page, linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (at - low) / ((high - low) or 1.0) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values inside [low, high]: multiples of 1, 2 or 5 times a power of ten."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [step * 10.0**power for power in powers for step in (1, 2, 5)]
        else:
            step = round_step((self.high - self.low) / count)
            values = [
                step * k for k in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)
            ]
        return [v for v in values if self.low * (1 - 1e-9) <= v <= self.high * (1 + 1e-9)]


def round_step(step: float) -> float:
    """The nearest of 1, 2, 5, 10 times a power of ten that is no smaller than `step`."""
    if step <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * (1 - 1e-9))


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions moved as little as a top-down pass allows so that neighbours are `gap` apart within [low, high]."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = list(positions)
    floor = low
    for index in order:
        placed[index] = floor = max(positions[index], floor)
        floor += gap
    ceiling = high
    for index in reversed(order):
        placed[index] = ceiling = min(placed[index], ceiling)
        ceiling -= gap
    return placed
