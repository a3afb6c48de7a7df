"""Tables of how a student was made: what healing cost, and what its layers were chosen by."""

from collections.abc import Callable, Sequence
from typing import Any

from compress.report.cells import cell, fixed
from compress.report.importance import drop_order, layer_scores, score_unit
from compress.report.measures import memory
from compress.report.run_files import Record, number
from compress.report.table import Table
from compress.units import format_bytes, format_seconds

_TRAINING: Sequence[tuple[str, str, Callable[[float], str]]] = (
    ("tokens", "Training tokens", fixed(0)),
    ("steps", "Steps", fixed(0)),
    ("skipped_steps", "Steps skipped (not finite)", fixed(0)),
    ("seconds", "Wall time", format_seconds),
    ("tokens_per_s", "Tokens a second", fixed(0)),
    ("flops", "FLOPs", lambda value: f"{value:.2e}"),
    ("mfu", "Share of peak FLOP/s (MFU)", lambda value: f"{value:.1%}"),
    ("peak_gib", "Peak memory", memory),
    ("planned_memory", "Memory of training, planned", format_bytes),
    ("peak_memory", "Memory of training, measured", format_bytes),
)


def training(report: Record) -> Table:
    """What healing cost, and each loss that the training record names."""
    train = report["train"] or {}
    rows = [[label, cell(train, key, show)] for key, label, show in _TRAINING if number(train.get(key)) is not None]
    for key, value in _flat(train):
        if "loss" in key and number(value) is not None:
            rows.append(
                [key.replace("heldout", "held-out").replace("_", " ").replace(".", ", ").capitalize(), f"{value:.4f}"]
            )
    return Table(title="Cost of healing", note="From the training record.", columns=["", "Value"], rows=rows)


def _flat(record: Record, prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for key, value in record.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return pairs


def importance(report: Record) -> Table:
    """The score that each of the teacher's layers was chosen by, and whether it stays."""
    prune = report["prune"] or {}
    dropped, order = set(prune.get("dropped_layers") or ()), drop_order(prune)

    def fate(layer: int) -> str:
        return f"dropped {order[layer]}." if layer in order else "dropped" if layer in dropped else "kept"

    rows = [[str(layer), fate(layer), f"{score:.5g}"] for layer, score in enumerate(layer_scores(prune))]
    note = f"By {prune.get('method')}: {score_unit(prune)}. The last layer always stays."
    return Table(
        title="Importance of layers",
        note=note,
        columns=["Layer", "", "Score"],
        rows=rows,
        text_columns=2,
        folded=True,
    )
