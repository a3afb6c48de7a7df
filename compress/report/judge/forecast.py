"""What more tokens would give: a power law with an offset through held-out measures, and how sure that is.

    L(t) = c + a t^-b        a > 0, b > 0, c >= 0

by least squares: of each b on a grid the best a and c are linear algebra. The interval is a bootstrap of the fit:
errors are drawn with the variance that the residuals have (itself drawn, as n - 3 of n residuals are free), added to
the fitted curve, and fitted again; a new measure then has an error of its own. Only measures at the full learning rate
are fitted: where it falls, losses fall with it, which says nothing of what more tokens give; and of
those the later half, as the first tokens of a recovery follow another law: a fit to all is surer than it is right.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEAST_POINTS = 5
_LEAST_R2 = 0.9
_EXPONENTS = np.geomspace(0.02, 4.0, 200)
_DRAWS = 500
_SIDE = 5.0
"""Percent of the draws below a 90% interval, and above it."""


class NoForecast(Exception):
    """Nothing can be said of more tokens; the text says why."""


@dataclasses.dataclass(frozen=True)
class Forecast:
    """A fitted curve, and curves that the points would have given as well; tokens are of the training."""

    offset: float
    """c, in the unit of the measure (nats a token)."""
    scale: float
    """a, of tokens in units of `unit`."""
    exponent: float
    """b."""
    unit: float
    """Tokens of the last point."""
    points: int
    r2: float
    """1 - the curve's mean squared error over the variance of all measures."""
    draws: Array
    """(c, a, b, error of a new measure) of each bootstrap draw, [draws, 4]."""

    def at(self, tokens: float) -> tuple[float, float, float]:
        """The measure after so many tokens, and the ends of its 90% interval."""
        offset, scale, exponent, error = self.draws.T
        drawn = offset + scale * (tokens / self.unit) ** -exponent + error
        low, high = np.percentile(drawn, [_SIDE, 100 - _SIDE])
        return self.offset + self.scale * (tokens / self.unit) ** -self.exponent, float(low), float(high)

    def tokens_to(self, level: float) -> tuple[float, float, float]:
        """Tokens until the curve is down at `level`, and the ends of the 90% interval; infinite where it never is."""
        own = _tokens_to(level, *np.array([[self.offset], [self.scale], [self.exponent]]))
        drawn = np.sort(_tokens_to(level, *self.draws.T[:3]))
        last = len(drawn) - 1
        ends = (drawn[round(share / 100 * last)] for share in (_SIDE, 100 - _SIDE))
        return float(own[0] * self.unit), *(float(end * self.unit) for end in ends)  # type: ignore[return-value]


def fit_forecast(tokens: Sequence[float], values: Sequence[float], seed: int = 0) -> Forecast:
    """Fit the law to the later half of the measure's `values` after so many `tokens`, increasing and above 0.

    Raises:
        NoForecast: there are too few points, they do not fall, or they are no such curve.
    """
    t, y = np.asarray(tokens, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if len(t) < LEAST_POINTS:
        raise NoForecast(f"{len(t)} measures at the full learning rate are too few; it takes {LEAST_POINTS}")
    if not y[-1] < y[0]:
        raise NoForecast("it does not fall")
    course, early = y.var(), min(len(t) // 2, len(t) - LEAST_POINTS)
    t, y = t[early:], y[early:]
    unit = float(t[-1])
    (offset, scale, exponent), fitted = (each[0] for each in _fit(t / unit, y[None]))
    r2 = 1 - float(((y - fitted) ** 2).mean() / course)
    if r2 < _LEAST_R2 or scale <= 0:
        raise NoForecast(f"a power law explains {max(r2, 0):.0%} of its course, less than {_LEAST_R2:.0%}")
    rng = np.random.default_rng(seed)
    free = len(t) - 3
    sigma = np.sqrt(((y - fitted) ** 2).sum() / rng.chisquare(free, _DRAWS))
    samples = fitted + sigma[:, None] * rng.standard_normal((_DRAWS, len(t)))
    drawn, _ = _fit(t / unit, samples)
    error = sigma * rng.standard_normal(_DRAWS)
    return Forecast(float(offset), float(scale), float(exponent), unit, len(t), r2, np.column_stack([drawn, error]))


def full_rate_points(
    rows: Sequence[Mapping[str, Any]], measure: str, config: Mapping[str, Any], steps: int
) -> tuple[list[float], list[float]]:
    """Tokens and values of a held-out measure (`heldout_kl`) in logged rows, after the warm-up and before a decay.

    `config` is the training's, `steps` all that it has.

    Raises:
        NoForecast: the learning rate falls over the whole run.
    """
    schedule = config.get("schedule")
    if schedule not in ("constant", "wsd"):
        raise NoForecast(
            f"the learning rate falls over the whole run ({schedule}), so that losses on the way say nothing of more "
            "tokens; schedule: wsd or constant can be extrapolated"
        )
    first = round(float(config.get("warmup_fraction") or 0) * steps)
    last = steps - round(float(config.get("decay_fraction") or 0) * steps) if schedule == "wsd" else steps
    found = [
        (float(row["tokens"]), float(row[measure]))
        for row in rows
        if row.get(measure) is not None and row.get("tokens") and max(first, 1) <= row["step"] <= last
    ]
    return [tokens for tokens, _ in found], [value for _, value in found]


def _fit(t: Array, y: Array) -> tuple[Array, Array]:
    """(c, a, b) [N, 3] with the least squares, and their curves [N, points], for each row of `y` [N, points]."""
    powers = t ** -_EXPONENTS[:, None]  # [exponents, points]
    mean, middle = y.mean(axis=1, keepdims=True), powers.mean(axis=1)
    away, spread = y - mean, powers - middle[:, None]
    # Of each exponent the best slope, then the offset, [N, exponents]; a rising curve is flat.
    scale = np.maximum(away @ spread.T / (spread**2).sum(axis=1), 0.0)
    offset = mean - scale * middle
    # An offset below 0, which no loss has, is held at 0.
    scale = np.where(offset < 0, y @ powers.T / (powers**2).sum(axis=1), scale)
    offset = np.maximum(offset, 0.0)
    shift = offset - mean + scale * middle  # of the curve's mean from that of the points
    squares = (scale**2) * (spread**2).sum(axis=1) - 2 * scale * (away @ spread.T) + len(t) * shift**2
    best = squares.argmin(axis=1)
    rows = np.arange(len(y))
    found = np.column_stack([offset[rows, best], scale[rows, best], _EXPONENTS[best]])
    return found, found[:, :1] + found[:, 1:2] * powers[best]


def _tokens_to(level: float, offset: Array, scale: Array, exponent: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(level > offset, (scale / (level - offset)) ** (1 / exponent), math.inf)
