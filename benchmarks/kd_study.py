"""torchtune's study of distillation, on any recipe: teacher tuned or not, student tuned or not, rate, share of KD.

    python benchmarks/kd_study.py recipes/kd-study-smollm2.yaml --tables 2 5 --seeds 0 1 --set teacher.model=DIR ...

A run folder in `--out` for each case and seed (so a rerun does what is missing), and `study.json` and `study.md` with a
table for each of its numbers in the blog. Cases share what does not depend on them: text, and first scores of models.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from compress.base.config import to_dict
from compress.base.machine import environment
from compress.report.cells import plus_minus
from compress.run.pipeline import run_recipe
from compress.run.recipe import Recipe, load_recipe


class Case(NamedTuple):
    """A row of a table, and what of the recipe it changes."""

    name: str
    row: str
    changes: tuple[str, ...] = ()
    tuned_student: bool = False
    """Whether it begins with the student of the case `kd-0`: fine-tuned without a teacher."""


RATIOS = (0.0, 0.25, 0.5, 0.75, 1.0)
RATES = (1e-5, 1e-4, 3e-4, 1e-3)


def tables(recipe: Recipe) -> dict[int, tuple[str, list[Case]]]:
    """Number in torchtune's blog -> what it asks, and its rows."""
    ratios = {ratio: Case(f"kd-{ratio:g}", f"{ratio:g}", (f"distill.alpha={ratio}",)) for ratio in RATIOS}
    own = ratios.get(recipe.distill.alpha, Case("recipe", ""))._replace(row="as they are")  # type: ignore[arg-type]
    return {
        2: ("the teacher", [own, Case("teacher-tuned", "fine-tuned first", (finetuning(recipe),))]),
        3: ("the student", [own, ratios[0.0], Case("student-tuned", "fine-tuned first", tuned_student=True)]),
        4: ("learning rate", [Case(f"lr-{rate:g}", f"{rate:g}", (f"distill.lr={rate}",)) for rate in RATES]),
        5: ("kd_ratio", list(ratios.values())),
    }


def finetuning(recipe: Recipe) -> str:
    """The teacher's training: as many tokens as the student's, at its pace, with its adapters."""
    names = ("tokens", "lr", "batch_tokens", "precision", "lora")
    options = {name: value for name, value in to_dict(recipe.distill).items() if name in names}
    return f"teacher.finetune={json.dumps(options)}"


def main() -> None:
    """Run what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of `compress run`")
    parser.add_argument("--tables", type=int, nargs="+", default=[2, 3, 4, 5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, default=Path("runs/kd-study"))
    options = parser.parse_args()
    known = tables(load_recipe(options.recipe, options.set))
    asked = [known[number] for number in options.tables]
    reports: dict[str, list[dict[str, Any]]] = {}
    for seed in options.seeds:
        for case in {case.name: case for _, cases in asked for case in cases}.values():
            reports.setdefault(case.name, []).append(run(options, case, seed))
            write(options.out, asked, reports)
    sys.stdout.write((options.out / "study.md").read_text())


def run(options: argparse.Namespace, case: Case, seed: int) -> dict[str, Any]:
    """The report of a case."""
    out = options.out / f"{case.name}-{seed}"
    changes = [*options.set, *case.changes, f"distill.seed={seed}"]
    if case.tuned_student:
        changes.append(f"student.model={options.out / f'kd-0-{seed}' / 'student'}")
    if not (out / "report.json").is_file():
        tuned_teacher = any(change.startswith("teacher.") for change in case.changes)
        share(options.out, out, teacher=not tuned_teacher, student=not (case.tuned_student or tuned_teacher))
        run_recipe(load_recipe(options.recipe, changes), out)
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


def share(study: Path, out: Path, *, teacher: bool, student: bool) -> None:
    """Copy from a finished case what this one has alike; the run itself finds out whether it is."""
    done = next((path.parent for path in sorted(study.glob("*/report.json")) if "tuned" not in path.parent.name), None)
    if done is None or out.exists():
        return
    shutil.copytree(done / "data", out / "data")
    (out / "eval").mkdir()
    for name in ["teacher"] * teacher + ["student-init"] * student:
        for path in (done / "eval").glob(f"{name}.*"):
            shutil.copyfile(path, out / "eval" / path.name)


def write(out: Path, asked: list[tuple[str, list[Case]]], reports: dict[str, list[dict[str, Any]]]) -> None:
    """`study.json`, and `study.md`: a row for each case, means over its seeds."""
    rows = {name: row(found) for name, found in reports.items()}
    (out / "study.json").write_text(json.dumps({"environment": environment(), "cases": rows}, indent=1))
    parts = []
    for what, cases in asked:
        found = [(case.row, rows[case.name]) for case in cases if case.name in rows]
        columns = list(found[0][1]) if found else []
        lines = [f"| {what} | " + " | ".join(columns) + " |", "|" + " --- |" * (len(columns) + 1)]
        lines += [f"| {label} | " + " | ".join(cells[column] for column in columns) + " |" for label, cells in found]
        parts.append("\n".join(lines) + "\n")
    (out / "study.md").write_text("\n".join(parts))


def row(reports: list[dict[str, Any]]) -> dict[str, str]:
    """Scores ± standard errors over items, loss and KL on held-out answers ± theirs over documents; means over seeds,
    whose own spread follows in brackets."""
    students = [report["student"] for report in reports]
    found = {}
    for task, entry in students[0]["tasks"].items():
        if metric := entry.get("primary"):
            values = [student["tasks"][task][metric] for student in students]
            score = {"value": mean(values), "stderr": entry.get(f"{metric}_stderr")}
            found[task] = plus_minus(score, metric) + spread([100 * value for value in values], 1)
    for title, part, name in (("loss", "heldout", "loss_nats"), ("KL to the teacher", "fidelity", "kl_nats")):
        values = [student[part][name] for student in students]
        error = students[0][part].get(f"{name}_stderr") or 0.0
        found[title] = f"{mean(values):.4f} ± {error:.4f}{spread(values, 4)}"
    return found


def spread(values: list[float], digits: int) -> str:
    """Half the distance between the least and the greatest, in brackets."""
    return f" ({(max(values) - min(values)) / 2:.{digits}f})" if len(values) > 1 else ""


if __name__ == "__main__":
    main()
