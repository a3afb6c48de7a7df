"""The healed student in other formats: what the bits cost, beside what the layers cost."""

from collections.abc import Mapping

from compress.report.judge.scores import build_scores
from compress.report.run_files import Record, RunFiles, number


def exports(run: RunFiles, scores: Mapping[str, Record]) -> list[Record]:
    """Teacher, healed student and each export of it, the largest first, with `bytes`, `bits_per_weight`, `kl_nats` and
    `loss_nats` with standard errors, scores by task (`value`, `stderr`), rates and the dtype that was computed in;
    empty where nothing was exported.

    Rates of the student and its exports were measured in turns. A GGUF file (`dequantised`) is scored as transformers
    reads it, in full precision, and has none.
    """
    ends = {key: run.evals[key] for key in ("teacher", "student") if key in run.evals}
    if not run.exports or "student" not in ends:
        return []
    evals = {**ends, **{each.made["format"]: each.scores for each in run.exports if each.scores is not None}}
    made = build_scores(evals)
    tasks = [name for name, entry in scores.items() if entry["part_of"] is None]

    def row(name: str, key: str, size: Record, record: Record | None, speed: Record | None) -> Record:
        near, held = (record or {}).get("fidelity") or {}, (record or {}).get("heldout") or {}
        return {
            "model": name,
            "format": key if key not in ends else None,
            **size,
            "kl_nats": near.get("kl_nats"),
            "kl_nats_stderr": near.get("kl_nats_stderr"),
            "loss_nats": held.get("loss_nats"),
            "loss_nats_stderr": held.get("loss_nats_stderr"),
            "tasks": {task: {**made[task].get(key, {}), "metric": made[task]["metric"]} for task in tasks},
            **{rate: (speed or {}).get(rate) for rate in ("prefill_tokens_per_s", "decode_tokens_per_s", "dtype")},
        }

    rows = [
        row(run.labels[key], key, _stored(record), record, run.export_speeds.get(key)) for key, record in ends.items()
    ]
    for each in run.exports:
        name = each.made["format"]
        size = {key: each.made[key] for key in ("bytes", "bits_per_weight")} | {"dequantised": bool(each.made["file"])}
        rows.append(row(f"as {name}", name, size, each.scores, run.export_speeds.get(f"export-{name}")))
    return rows


def _stored(record: Record) -> Record:
    size, count = number(record.get("bytes")), number(record.get("params"))
    bits = 8 * size / count if size is not None and count else None
    return {"bytes": size, "bits_per_weight": bits, "dequantised": False}
