"""The table of what the student's bits cost."""

from compress.base.units import format_bytes
from compress.report.cells import NONE, cell, fixed, plus_minus, with_error
from compress.report.run_files import Record, number
from compress.report.tables.table import Table


def exports(report: Record) -> Table:
    """Size, nearness, scores and speed of teacher, healed student and its exports."""
    found = report.get("exports") or []
    tasks = list(found[0]["tasks"]) if found else []
    rows = [
        [
            each["model"],
            cell(each, "bytes", format_bytes),
            cell(each, "bits_per_weight", fixed(2)),
            with_error(each, "kl_nats", fixed(4)),
            with_error(each, "loss_nats", fixed(3)),
            *(_score(each["tasks"][task]) for task in tasks),
            cell(each, "prefill_tokens_per_s", fixed(0)),
            cell(each, "decode_tokens_per_s", fixed(0)),
            each["dtype"] or NONE,
        ]
        for each in found
    ]
    note = (
        "The healed student in other formats: what fewer bits cost, beside what fewer layers cost. KL and loss on "
        "held-out text, nats a token; scores in percent; ± one standard error. Speeds of the student and its exports "
        "were measured in turns, in the dtype of the last column."
    )
    if any(each["dequantised"] for each in found):
        note += (
            " A GGUF file is scored as transformers reads it, dequantised: its scores are those of its bits, and it "
            "has no speed here."
        )
    rates = ("Prefill tokens/s", "Decode tokens/s", "Dtype")
    columns = ["Model", "On disk", "Bits a weight", "KL", "Loss", *tasks, *rates]
    return Table(title="What the bits cost", note=note, columns=columns, rows=rows)


def _score(score: Record) -> str:
    return plus_minus(score, score["metric"]) if number(score.get("value")) is not None else NONE
