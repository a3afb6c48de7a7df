"""The report's tables as plain text cells, made once; html.py and markdown.py only lay them out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from compress.report.build import LABELS
from compress.report.cells import NONE, cell, fixed, layer_ranges, percent, plus_minus, points, ratio_with_interval
from compress.report.importance import drop_order, layer_scores, measures, score_unit
from compress.report.ranked import candidate_losses, candidates
from compress.report.run_files import MODELS, Record, number
from compress.report.scores import STUDENTS, metric_names
from compress.units import format_bytes, format_seconds

_REMARKS = ("Not above chance", "Measured on")


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A title, a sentence on how to read it, column names and rows of text; the first `text_columns` hold words."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1
    folded: bool = False

    @property
    def words(self) -> list[bool]:
        """By column: whether it holds words, set to the left, and not numbers."""
        return [index < self.text_columns or name in _REMARKS for index, name in enumerate(self.columns)]


def all_tables(report: Record) -> list[Table]:
    """The tables of a report, in reading order; a table without rows is left out."""
    made = (scores(report), retention(report), text(report), speed(report), training(report))
    return [table for table in (*made, ranking(report), importance(report), every_metric(report)) if table.rows]


def models(report: Record) -> list[str]:
    """Keys of the evaluated models: teacher, student_init, student."""
    return [key for key in MODELS if report[key]]


def main_tasks(report: Record) -> dict[str, Record]:
    """Scores of the tasks that are no part of a reported group."""
    return {name: entry for name, entry in report["scores"].items() if entry["part_of"] is None}


def scores(report: Record) -> Table:
    """Primary metric of each task, +- one standard error, with what cannot be told from guessing."""
    keys = models(report)
    rows = []
    for name, entry in main_tasks(report).items():
        found = [key for key in keys if key in entry]
        sample = [entry[key] for key in found]
        shots, items = (_one_or_all([s[field] for s in sample]) for field in ("num_fewshot", "n"))
        cells = [plus_minus(entry.get(key), entry["metric"]) for key in keys]
        rows.append(
            [name, entry["metric"] or NONE, shots, items, percent(entry["chance"]), *cells, _at_chance(entry, found)]
        )
    columns = ["Task", "Metric", "Shots", "Items", "Chance", *(LABELS[key].capitalize() for key in keys)]
    if any(row[-1] for row in rows):
        columns.append("Not above chance")
    else:
        rows = [row[:-1] for row in rows]
    note = "Percent ± one standard error. A model is not above chance when its 95% interval reaches down to guessing."
    return Table(title="Scores", note=note, columns=columns, rows=rows, text_columns=2)


def _at_chance(entry: Record, keys: list[str]) -> str:
    said = {"same": "", "below": " (below)"}
    return ", ".join(LABELS[k] + said[v] for k in keys if (v := entry[k]["versus_chance"]) in said)


def _one_or_all(values: list[Any]) -> str:
    texts = [NONE if value is None else f"{value:,}" for value in values]
    return " / ".join(texts if len(set(texts)) > 1 else texts[:1])


def retention(report: Record) -> Table:
    """What each student keeps of the teacher, above chance and raw, with paired intervals."""
    tables = {"student": report["retention"], "student_init": report["retention_student_init"]}
    rows = []
    for name in main_tasks(report):
        label = name
        for model in reversed(STUDENTS):
            if entry := tables[model].get(name):
                raw = ratio_with_interval(entry["raw"], entry["raw_ci95"])
                delta = points(entry["difference"], entry["difference_ci95"])
                paired = NONE if entry["paired_items"] is None else f"{entry['paired_items']:,}"
                rows.append([label, LABELS[model], _kept(entry), raw, delta, paired])
                label = ""
    label = "all tasks, equal weight"
    for model in reversed(STUDENTS):
        if overall := report["overall"].get(model):
            rows.append([label, LABELS[model], _kept(overall), NONE, NONE, NONE])
            label = ""
    columns = ["Task", "Model", "Kept above chance", "Kept, raw", "Difference, points", "Paired items"]
    note = (
        "Share of the teacher's score that is kept: (student − chance) / (teacher − chance), and student / teacher. "
        "In brackets 95% intervals of a paired bootstrap over the items that both models answered."
    )
    return Table(title="Retention", note=note, columns=columns, rows=rows, text_columns=2)


def _kept(entry: Record) -> str:
    shown, note = ratio_with_interval(entry["chance_corrected"], entry["ci95"]), entry["note"]
    if note is None:
        return shown
    return note if entry["chance_corrected"] is None else f"{shown} ({note})"


def text(report: Record) -> Table:
    """Held-out text and fidelity to the teacher."""
    rows = []
    for key in models(report):
        held, near = report[key].get("heldout"), report[key].get("fidelity")
        if held or near:
            cells = [
                cell(held, "loss_nats", fixed(3)),
                cell(held, "perplexity", fixed(2)),
                cell(held, "bits_per_byte", fixed(3)),
            ]
            cells += [
                cell(near, "kl_nats", fixed(4)),
                cell(near, "js_nats", fixed(4)),
                cell(near, "top1_agreement", percent),
            ]
            rows.append([LABELS[key], *cells, cell(held, "tokens", fixed(0))])
    columns = [
        "Model",
        "Loss, nats/token",
        "Perplexity",
        "Bits/byte",
        "KL, nats/token",
        "JS, nats/token",
        "Same top token, %",
        "Tokens",
    ]
    note = "Held-out text. KL and JS are divergences from the teacher's next-token distribution, averaged over tokens."
    return Table(title="Held-out text and fidelity", note=note, columns=columns, rows=rows)


def speed(report: Record) -> Table:
    """Size, speed, latency and peak memory, with the device they were measured on."""
    rows = []
    for key in models(report):
        record = report[key]
        fast = record.get("speed")
        cells = [cell(record, "params", fixed(0)), cell(record, "bytes", format_bytes)]
        cells += [cell(fast, name, fixed(0)) for name in ("prefill_tokens_per_s", "decode_tokens_per_s")]
        cells += [cell(fast, name, fixed(1)) for name in ("latency_ms_p50", "latency_ms_p95")]
        where = ", ".join(str(fast[name]) for name in ("device", "dtype") if fast.get(name)) if fast else NONE
        rows.append([LABELS[key], *cells, cell(fast, "peak_gib", _gib), where])
    columns = [
        "Model",
        "Parameters",
        "On disk",
        "Prefill, tok/s",
        "Decode, tok/s",
        "Latency p50, ms",
        "p95, ms",
        "Peak memory",
        "Measured on",
    ]
    return Table(
        title="Size and speed",
        note="Each speed as measured on the device named in the last column.",
        columns=columns,
        rows=rows,
    )


def _gib(value: float) -> str:
    return format_bytes(value * 2**30)


_TRAINING: Sequence[tuple[str, str, Callable[[float], str]]] = (
    ("tokens", "Training tokens", fixed(0)),
    ("steps", "Steps", fixed(0)),
    ("skipped_steps", "Steps skipped (not finite)", fixed(0)),
    ("seconds", "Wall time", format_seconds),
    ("tokens_per_s", "Tokens a second", fixed(0)),
    ("flops", "FLOPs", lambda value: f"{value:.2e}"),
    ("mfu", "Share of peak FLOP/s (MFU)", lambda value: f"{value:.1%}"),
    ("peak_gib", "Peak memory", _gib),
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


def ranking(report: Record) -> Table:
    """Candidate cuts and their held-out losses before and after the heal that they were compared by."""
    rows = []
    for candidate in candidates(report["prune"]):
        losses = [NONE if loss is None else f"{loss:.4f}" for loss in candidate_losses(candidate)]
        rows.append([layer_ranges(candidate["kept_layers"]), ", ".join(candidate["proposed_by"]), *losses])
    return Table(
        title="Candidate cuts",
        note="Held-out loss as healing minimises it, nats a token, before and after the heal; the first was chosen.",
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


def every_metric(report: Record) -> Table:
    """All metrics of all tasks and of the parts of groups."""
    keys = models(report)
    tasks = [report[key]["tasks"] for key in keys]
    names = dict.fromkeys(
        (name, metric) for scored in tasks for name in scored for metric in metric_names(scored[name])
    )
    rows = []
    for name, metric in names:
        found = [scored.get(name, {}) for scored in tasks]
        pairs = [(number(task.get(metric)), number(task.get(f"{metric}_stderr"))) for task in found]
        rows.append(
            [name, metric, *(plus_minus({"value": value, "stderr": stderr}, metric) for value, stderr in pairs)]
        )
    columns = ["Task", "Metric", *(LABELS[key].capitalize() for key in keys)]
    return Table(
        title="Every metric",
        note="All metrics, parts of groups too; percent ± one standard error.",
        columns=columns,
        rows=rows,
        text_columns=2,
        folded=True,
    )
