"""Held-out rows measured while a student is trained: all of them, and those of each source of a blend."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from compress.base.config import to_dict
from compress.base.progress import progress_bar, say
from compress.distill.loop.metrics import Metrics, heldout_columns
from compress.distill.loop.progress import OF_SOURCES
from compress.distill.loop.session import Session
from compress.report.judge.forecast import NoForecast, fit_forecast, full_rate_points


def measure_heldout(s: Session, metrics: Metrics) -> None:
    """Measure and log the student as it is on the held-out rows; what is not finite counts as none."""
    if not len(s.heldout):
        return
    parts = s.heldout.by_source()
    with progress_bar("held-out text", s.heldout.ids.size, unit="tokens") as bar:
        measured = {
            name: s.losses.measure(s.losses.share(batch), s.setting(), bar.advance)
            for name, batch in (parts or {"": s.heldout}).items()
        }
    found = pooled(measured, {name: batch.num_labels for name, batch in parts.items()}) if parts else measured[""]
    s.progress.note_heldout(found, measured if parts else {})
    if not math.isfinite(found["loss"]):
        say(f"The held-out loss after step {s.progress.step} is {found['loss']}.")
    of_sources = {
        f"heldout_{name}/{source}": values[name]
        for source, values in s.progress.heldout_sources.items()
        for name in OF_SOURCES
        if name in values
    }
    metrics.write({"step": s.progress.step, "tokens": s.tokens, **heldout_columns(found), **of_sources})
    s.outlook = _outlook(s, metrics.heldout)


def _outlook(s: Session, rows: Sequence[Mapping[str, Any]]) -> str:
    """What the run's measure is expected to be at its end, once a tenth of it is done; empty where nothing says so."""
    done, steps = s.progress.step, s.budget.steps
    if not 0.1 * steps <= done < steps:
        return ""
    try:
        points = full_rate_points(rows, s.progress.best_by, to_dict(s.config), steps)
        value, low, high = fit_forecast(*points).at(s.budget.rows * s.rows.seq_len)
    except NoForecast:
        return ""
    name = {"heldout_kl": "KL", "heldout_hard": "loss"}.get(s.progress.best_by, "loss")
    before = " before the decay" if s.config.schedule == "wsd" else ""
    return f", held-out {name} {value:.3f} ({low:.3f} to {high:.3f}) expected at the end{before}"


def pooled(measured: Mapping[str, Mapping[str, float]], labels: Mapping[str, float]) -> dict[str, float]:
    """Means over all labels from those over each source's, and their standard errors, where each source has one."""
    total = math.fsum(labels.values())
    found = {}
    for quantity in next(iter(measured.values())):
        if all(quantity in each for each in measured.values()):
            values = [labels[name] / total * each[quantity] for name, each in measured.items()]
            found[quantity] = math.hypot(*values) if quantity.endswith("_stderr") else math.fsum(values)
    return found
