"""Held-out rows measured while a student is trained: all of them, and those of each source of a blend."""

import math
from collections.abc import Mapping

from compress.base.progress import progress_bar, say
from compress.distill.loop.metrics import Metrics, heldout_columns
from compress.distill.loop.progress import OF_SOURCES
from compress.distill.loop.session import Session


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


def pooled(measured: Mapping[str, Mapping[str, float]], labels: Mapping[str, float]) -> dict[str, float]:
    """Means over all labels from those over each source's, and their standard errors, where each source has one."""
    total = math.fsum(labels.values())
    found = {}
    for quantity in next(iter(measured.values())):
        if all(quantity in each for each in measured.values()):
            values = [labels[name] / total * each[quantity] for name, each in measured.items()]
            found[quantity] = math.hypot(*values) if quantity.endswith("_stderr") else math.fsum(values)
    return found
