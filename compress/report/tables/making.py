"""Tables of how a student was made: what healing cost, and what its layers were chosen by."""

from collections.abc import Callable, Sequence
from typing import Any

from compress.base.units import format_bytes, format_count, format_seconds
from compress.report.cells import NONE, cell, fixed, layer_ranges
from compress.report.judge.choice import (
    candidate_losses,
    candidates,
    compared_by,
    compared_in_words,
    drop_order,
    layer_scores,
    measures,
    score_unit,
)
from compress.report.judge.selection import measured_in, selection_of, selection_words
from compress.report.run_files import Record, number
from compress.report.tables.measures import memory
from compress.report.tables.table import Table

_TRAINING: Sequence[tuple[str, str, Callable[[float], str]]] = (
    ("tokens", "Training tokens", fixed(0)),
    ("steps", "Steps", fixed(0)),
    ("skipped_steps", "Steps skipped (not finite, or a spike of the loss)", fixed(0)),
    ("seconds", "Wall time", format_seconds),
    ("tokens_per_s", "Tokens a second", fixed(0)),
    ("flops", "FLOPs", lambda value: f"{value:.2e}"),
    ("mfu", "Share of peak FLOP/s (MFU)", lambda value: f"{value:.1%}"),
    ("peak_gib", "Peak memory", memory),
    ("planned_memory", "Memory of training, planned", format_bytes),
    ("peak_memory", "Memory of training, measured", format_bytes),
)


_ON_POLICY: Sequence[tuple[str, str, Callable[[float], str]]] = (
    ("On-policy steps", "steps", fixed(0)),
    ("Rollouts", "rollouts", fixed(0)),
    ("Tokens that the student wrote", "tokens", fixed(0)),
    ("Tokens a rollout", "mean_tokens", fixed(1)),
    ("Tokens a rollout at most, in the end", "limit", fixed(0)),
    ("Repeated 4-grams of rollouts", "repetition", lambda value: f"{value:.1%}"),
    ("Tokens a second, writing", "writing_tokens_per_s", fixed(0)),
    ("Tokens a second, learning", "learning_tokens_per_s", fixed(0)),
)


def training(report: Record) -> Table:
    """What healing cost, and each loss that the training record names."""
    train = report["train"] or {}
    own = train.get("on_policy") or {}
    rows = [[label, cell(train, key, show)] for key, label, show in _TRAINING if number(train.get(key)) is not None]
    if aligned := train.get("aligned"):
        rows.insert(0, ["Tokens aligned with the teacher's tokenizer", cell(aligned, "share", "{:.1%}".format)])
    if train.get("cache"):
        rows.insert(0, ["Taught by", _cache_words(train["cache"])])
    if train.get("mixture"):
        rows.insert(0, ["Taught by", train["mixture"]["shares"]])
    trained, parameters = (number(train.get(key)) for key in ("trained_parameters", "parameters"))
    if trained is not None and parameters is not None:
        rows.insert(0, ["Parameters trained", f"{format_count(trained)} of {format_count(parameters)}"])
    rows += [[label, cell(own, key, show)] for label, key, show in _ON_POLICY if own]
    for key, value in _flat(train):
        if "loss" in key and number(value) is not None:
            rows.append(
                [key.replace("heldout", "held-out").replace("_", " ").replace(".", ", ").capitalize(), f"{value:.4f}"]
            )
    return Table(title="Cost of healing", note="From the training record.", columns=["", "Value"], rows=rows)


def _cache_words(cache: Record) -> str:
    """`a cache of the teacher's hidden states, 1.07 GiB, 1,152 bytes a token`."""
    kinds = {"hidden": "hidden states", "samples": "draws", "topk": "most likely tokens"}
    what = kinds.get(cache["kind"]) or str(cache["kind"])
    rounded = number(cache.get("rounding_kl"))
    if rounded is not None:
        what += f" in 8 bits ({rounded:.2g} nats a token off)"
    size, per_token = format_bytes(cache["bytes"]), cache["bytes_per_token"]
    return f"a cache of the teacher's {what}, {size}, {per_token:,.0f} bytes a token"


_TAUGHT_BY = {"original": "the teacher", "previous": "the student before", "self": "the student before"}
_STAGE: Sequence[tuple[str, str, Callable[[float], str]]] = (
    ("parameters", "Parameters", format_count),
    ("tokens", "Tokens", fixed(0)),
    ("heldout_kl_before", "KL before", fixed(4)),
    ("heldout_kl", "KL after", fixed(4)),
    ("seconds", "Wall time", format_seconds),
)


def stages(report: Record) -> Table:
    """The stages of a chain of cuts."""
    rows = []
    for place, stage in enumerate(report.get("stages") or (), start=1):
        kept = stage["kept_layers"]
        layers = [NONE, NONE] if kept is None else [layer_ranges(kept), str(len(kept))]
        cells = [cell(stage, key, show) for key, _, show in _STAGE]
        rows.append([str(place), _TAUGHT_BY.get(stage["taught_by"], NONE), *layers, *cells])
    return Table(
        title="Stages",
        note="Each heals a cut of the student before it. KL is to the one that taught it, held out, nats a token.",
        columns=["Stage", "Taught by", "Layers that stay", "Layers", *(label for _, label, _ in _STAGE)],
        rows=rows,
        text_columns=3,
    )


def selection(report: Record) -> Table:
    """How hard the text was, and what of it was learned from."""
    found = selection_of(report)
    columns, rows, note = [""], [], ""
    if found is not None:
        columns = ["", *(f"{float(q):.0%}" for q in found["quantiles"]), "mean"]
        rows = [[measured_in(found), *(f"{value:.3g}" for value in [*found["quantiles"].values(), found["mean"]])]]
        note = f"Quantiles over all {found['of']}. Learned from: {selection_words(found)}."
    return Table(title="How hard the text was", note=note, columns=columns, rows=rows)


def _flat(record: Record, prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for key, value in record.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return pairs


def ranking(report: Record) -> Table:
    """Candidate cuts and the held-out measure that they were compared by, before and after a short heal."""
    measure = compared_by(report["prune"])
    name, unit = compared_in_words(measure)
    lead = ((report["prune"] or {}).get("ranking") or {}).get("lead")
    ahead = (
        "" if lead is None else f", {lead['value']:.1%} ± {lead['stderr']:.1%} ahead of the next over the same items"
    )
    rows = []
    for candidate in candidates(report["prune"]):
        losses = [NONE if loss is None else f"{loss:.4f}" for loss in candidate_losses(candidate, measure)]
        rows.append([layer_ranges(candidate["kept_layers"]), ", ".join(candidate["proposed_by"]), *losses])
    return Table(
        title="Candidate cuts",
        note=f"{name[0].upper()}{name[1:]}, {unit}, before and after the heal; the first was chosen{ahead}.",
        columns=["Layers that stay", "Named by", "Cut", "Healed a little"],
        rows=rows,
        text_columns=2,
    )


def importance(report: Record) -> Table:
    """The scores that the teacher's layers were measured by, and whether they stay, by each measure."""
    found = measures(report["prune"])
    dropped = set((report["prune"] or {}).get("dropped_layers") or ())
    order = drop_order(found[0]) if len(found) == 1 else {}

    def fate(layer: int) -> str:
        return f"dropped {order[layer]}." if layer in order else "dropped" if layer in dropped else "kept"

    def score(measure: Record, layer: int) -> str:
        away = len(found) > 1 and layer in measure["dropped_layers"]
        return f"{layer_scores(measure)[layer]:.5g}{' ×' if away else ''}"

    layers = range(min((len(layer_scores(measure)) for measure in found), default=0))
    rows = [[str(layer), fate(layer), *(score(measure, layer) for measure in found)] for layer in layers]
    note = ". ".join(f"By {measure['method']}: {score_unit(measure)}" for measure in found)
    mark = " ×: that measure would drop it." if len(found) > 1 else ""
    return Table(
        title="Importance of layers",
        note=f"{note}. The last layer always stays.{mark}",
        columns=["Layer", "", *(["Score"] if len(found) == 1 else [str(measure["method"]) for measure in found])],
        rows=rows,
        text_columns=2,
        folded=True,
    )
