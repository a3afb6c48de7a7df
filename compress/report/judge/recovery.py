"""What more tokens of healing would give a run's student, from its held-out measures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from compress.report.judge.forecast import Forecast, NoForecast, fit_forecast, full_rate_points
from compress.report.run_files import Record, RunFiles, number

TIMES, SHARES = (1, 2, 5, 10), (0.9, 0.95, 0.99)
_NAMES = {"heldout_kl": "KL from the teacher", "heldout_hard": "loss"}


def recovery(run: RunFiles) -> list[Record]:
    """Of held-out KL and held-out loss: the fitted law with what it `expects` after multiples of the run's tokens and,
    of KL, the `tokens` until a share of the cut's is gone; or why it is `refused`."""
    return [] if run.distill is None else forecasts(run.distill, run.heldout_rows)


def forecasts(distill: Record, rows: Sequence[Mapping[str, Any]]) -> list[Record]:
    """The same of a training's record and its logged rows of held-out measures."""
    config = (distill.get("manifest") or {}).get("config") or {}
    if "schedule" not in config:
        return []
    found = []
    for measure, name in _NAMES.items():
        if all(number(row.get(measure)) is None for row in rows):
            continue
        entry: Record = {"measure": measure, "name": name, "refused": None}
        try:
            fitted = fit_forecast(*full_rate_points(rows, measure, config, int(distill.get("steps") or 0)))
        except NoForecast as why:
            entry["refused"] = str(why)
        else:
            before = next((row[measure] for row in rows if row["step"] == 0), None)
            entry |= _said(fitted, float(distill["tokens"]), before if measure == "heldout_kl" else None)
        found.append(entry)
    return found


def _said(fitted: Forecast, tokens: float, before: float | None) -> Record:
    entry: Record = {
        "offset": fitted.offset,
        "scale": fitted.scale * fitted.unit**fitted.exponent,
        "exponent": fitted.exponent,
        "r2": fitted.r2,
        "points": fitted.points,
        "expects": [
            {"tokens": times * tokens, **dict(zip(("value", "low", "high"), fitted.at(times * tokens), strict=True))}
            for times in TIMES
        ],
    }
    if before is not None:
        entry["tokens"] = [
            {"share": share, **dict(zip(("value", "low", "high"), map(_finite, found), strict=True))}
            for share in SHARES
            for found in [fitted.tokens_to((1 - share) * before)]
        ]
    return entry


def _finite(value: float) -> float | None:
    """A number that JSON has; None for never."""
    return value if math.isfinite(value) else None
