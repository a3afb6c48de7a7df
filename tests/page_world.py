"""The three kinds of pages, filled as real ones get: twelve students, long names, losses that lie close together."""

import json
import shutil
from pathlib import Path

import numpy as np
from report_world import make_run

from compress.report import write_report
from compress.report.compare import compare_models
from compress.report.sweep import write_sweep

ALPHAS, DIVERGENCES = (0.2, 0.4, 0.6, 0.8), ("forward_kl", "reverse_kl", "jensen_shannon")
TASKS = {
    "squad_completion_verbatim": ("acc", 0.25, 5, 300, 0.9, 0.3, 0.8),
    "agieval_en": ("acc", 0.25, 0, 300, 0.5, 0.26, 0.4),
}


def students(folder: Path) -> list[tuple[str, str, dict[str, object]]]:
    """Write twelve runs of a sweep into `folder`/runs: (name, folder, changes) of each."""
    cases = []
    first = make_run(folder / "first", TASKS)
    for alpha in ALPHAS:
        for divergence in DIVERGENCES:
            name = f"alpha-{alpha}_divergence-{divergence}"
            case = (f"alpha {alpha}, divergence {divergence}", name, {"alpha": alpha, "distill.divergence": divergence})
            cases.append(case)
            student(first, folder / "runs" / name, len(cases))
    shutil.rmtree(first)
    return cases


def student(first: Path, run: Path, number: int) -> None:
    """A copy of a run, its losses a little other."""
    shutil.copytree(first, run)
    rng = np.random.default_rng(number)
    share = 1 + 0.002 * (number % 7)
    path = run / "eval" / "student.json"
    record = json.loads(path.read_text())
    for part, name, level in (("heldout", "loss_nats", 2.95), ("fidelity", "kl_nats", 0.6)):
        values = level * share + rng.normal(0, 0.05, 40)
        by = {"tokens": [2048] * 40, name: values.tolist()}
        record[part] |= {name: values.mean(), f"{name}_stderr": 0.0123, "documents": 40, "by_document": by}
    path.write_text(json.dumps(record))
    log = run / "train" / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for row in rows:
        for name in ("soft", "hard", "heldout_soft", "heldout_hard"):
            if name in row:
                row[name] *= share
        if "heldout_soft" in row:
            row["heldout_kl"] = row["heldout_soft"]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))


def sweep_page(folder: Path) -> Path:
    """A sweep of twelve, one of which failed."""
    cases = students(folder)
    failed = {cases[4][0]: "5 steps in a row had a loss or gradient that is not finite; lower distill.lr or clip_norm."}
    return write_sweep(folder, cases, failed)


def compare_page(folder: Path) -> Path:
    """Twelve students and their teacher."""
    cases = students(folder)
    runs = [folder / "runs" / place for _, place, _ in cases]
    sources = [f"{name.replace('=', ' ')}={run}/eval/student.json" for (name, *_), run in zip(cases, runs, strict=True)]
    compare_models([f"the teacher={runs[0]}/eval/teacher.json", *sources], folder / "out")
    return folder / "out" / "compare.html"


def report_page(folder: Path) -> Path:
    """A run of a model of 32 layers, with a long name."""
    tasks = {**TASKS, "a_task_with_quite_a_long_name_indeed": ("acc", 0.25, 25, 300, 0.7, 0.3, 0.6)}
    return write_report(make_run(folder, tasks, name="llama-3.2-1b-half-depth-on-ten-billion-tokens", layers=32))
