"""What the pages quote from a run as it is: sample continuations and manifests."""

import json

from compress.report.run_files import Record, RunFiles
from compress.report.tables.table import labels

_SAMPLES = 8


def manifest_blocks(run: RunFiles) -> list[tuple[str, str, str]]:
    """(title, text, language) of the recipe and of each step's manifest, in the order of the flow."""
    blocks = [("recipe.yaml", run.recipe.strip(), "yaml")] if run.recipe else []
    records = {"prune": run.prune, "distill": run.distill} | {f"eval: {run.labels[k]}": r for k, r in run.evals.items()}
    for title, record in records.items():
        if record and record.get("manifest"):
            blocks.append((title, json.dumps(record["manifest"], indent=2, ensure_ascii=False), "json"))
    return blocks


def sample_rows(report: Record) -> list[tuple[str, dict[str, str]]]:
    """(prompt, continuation by model key) of the first few prompts, in the order of the first model that has them."""
    rows: dict[str, dict[str, str]] = {}
    for key in labels(report):
        for sample in report[key].get("samples") or []:
            rows.setdefault(str(sample["prompt"]), {})[key] = str(sample["continuation"])
    return list(rows.items())[:_SAMPLES]
