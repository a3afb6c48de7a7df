"""What a run folder holds: its JSON records, the training log and the scored items. Nothing is computed here."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.base.disk import read_json, read_rows
from compress.base.documents import load_yaml
from compress.base.errors import InputError
from compress.report import shapes

Record = dict[str, Any]

MODELS = {
    "teacher": "teacher",
    "teacher_before": "teacher-before",
    "student_init": "student-init",
    "student": "student",
}
"""Key in report.json -> stem of the file in RUN/eval/."""
STUDENTS = ("student_init", "student")
_GROWN = re.compile(r"grown-(\d+)\.json")
_LOWER_IS_BETTER = ("perplexity", "bits_per_byte", "loss")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingFiles:
    """A training beside the run's own; its fields as those of a run."""

    distill: Record | None
    train_rows: list[Record]
    heldout_rows: list[Record]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageFiles(TrainingFiles):
    """A stage of a chain.

    Attributes:
        taught_by: original, previous or self, as the recipe says.
    """

    taught_by: str
    prune: Record | None


@dataclass(frozen=True, kw_only=True, slots=True)
class BranchFiles(TrainingFiles):
    """A student that was trained on one source of the text, to be merged with others.

    Attributes:
        name: of the source.
        scores: its eval record, None where it was not evaluated.
    """

    name: str
    scores: Record | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportFiles:
    """The student in another format.

    Attributes:
        made: its export.json.
        scores: its eval record, None where it was not evaluated.
    """

    made: Record
    scores: Record | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFiles:
    """A run as it lies on disk; what has not been made yet is None or empty.

    Attributes:
        name: the recipe's name, else the folder's.
        recipe: text of recipe.yaml.
        given_student: whether the student is no cut, but a model that the recipe names.
        prune, distill: the records of those steps; of a chain, of the last stage and the last cut.
        stages: those of a chain, the last too; none of a run that cuts once.
        branches: those that the healed student was merged of; none of a run that trains once.
        evals: eval record by model key (`teacher`, `student_init`, `student`), in that order.
        items: per-item scores by model key.
        grown: eval records of models between student and teacher by their number of layers, increasing; `grown_items`
            their per-item scores.
        target: what the recipe asked to be reached; None where it names nothing.
        abilities: scores of the student while it was trained, and of its teacher; see `judge.ability`.
        exports: what the student was exported as, by size, decreasing.
        export_speeds: speed of `student` and of `export-FORMAT`, measured in turns.
        train_rows, heldout_rows: logged steps with a loss, and with a held-out loss; one row a step, by step.
    """

    name: str
    recipe: str | None
    given_student: bool
    prune: Record | None
    distill: Record | None
    evals: dict[str, Record]
    items: dict[str, list[Record]]
    grown: dict[int, Record]
    grown_items: dict[int, list[Record]]
    target: Record | None
    abilities: list[Record]
    exports: list["ExportFiles"]
    export_speeds: dict[str, Record]
    train_rows: list[Record]
    heldout_rows: list[Record]
    stages: list[StageFiles]
    branches: list[BranchFiles]

    @property
    def labels(self) -> dict[str, str]:
        """Model key -> the one name used for it on every page and in every figure."""
        return _labels(self.given_student)

    @property
    def expected(self) -> list[str]:
        """Keys of the models that a run evaluates; of the teacher before its fine-tuning, where there was one."""
        return [key for key in MODELS if key != "teacher_before" or key in self.evals]


def read_run(run: Path) -> RunFiles:
    """Read a run folder.

    Raises:
        InputError: the folder is missing or holds no evaluation, or a file in it cannot be read.
    """
    if not run.is_dir():
        raise InputError(f"The run folder {run} does not exist.")
    paths = {key: run / "eval" / f"{stem}.json" for key, stem in MODELS.items()}
    found = {key: read_evaluation(path) for key, path in paths.items() if path.is_file()}
    if not found:
        names = ", ".join(f"{stem}.json" for stem in MODELS.values())
        raise InputError(
            f"{run} has nothing to report: none of {names} is in {run / 'eval'}. Evaluate first, for example "
            f"`compress eval {run / 'student'} --out {run / 'eval' / 'student.json'}`."
        )
    recipe = run / "recipe.yaml"
    said = _recipe(run)
    stages = _stages(run, said)
    last = stages[-1] if stages else _stage(run, "original", None)
    grown = _grown(run / "eval")
    return RunFiles(
        name=str(said.get("name") or run.resolve().name),
        recipe=recipe.read_text(encoding="utf-8") if recipe.is_file() else None,
        given_student=bool(said.get("student")),
        prune=last.prune,
        distill=last.distill,
        evals=found,
        items={key: read_items(paths[key]) for key in found},
        grown={size: read_evaluation(path) for size, path in grown.items()},
        grown_items={size: read_items(path) for size, path in grown.items()},
        target=said.get("target"),
        abilities=_jsonl(run / "train" / "ability.jsonl", shapes.AbilityRecord),
        exports=_exports(run),
        export_speeds=_record(run / "eval" / "speed-export.json", dict[str, shapes.Rates | shapes.Manifest]) or {},
        train_rows=last.train_rows,
        heldout_rows=last.heldout_rows,
        stages=stages,
        branches=_branches(run),
    )


def _stages(run: Path, recipe: Record) -> list[StageFiles]:
    """The stages of a chain as its recipe has them; the last one's files are the run's own."""
    asked, found = recipe.get("stages") or [], list[StageFiles]()
    for number, stage in enumerate(asked, start=1):
        folder = run if number == len(asked) else run / "stages" / str(number)
        found.append(_stage(folder, stage.get("teacher", "original"), found[-1].prune if found else None))
    return found


def _stage(folder: Path, taught_by: str, cut_before: Record | None) -> StageFiles:
    """What a cut and its healing left in a folder; without a cut of its own, that before is what was healed."""
    steps, heldout = read_log(folder)
    return StageFiles(
        taught_by=taught_by,
        prune=_record(folder / "student-init" / "prune.json", shapes.PruneRecord) or cut_before,
        distill=_record(folder / "student" / "distill.json", shapes.TrainingRecord),
        train_rows=steps,
        heldout_rows=heldout,
    )


def _branches(run: Path) -> list[BranchFiles]:
    """The students in RUN/branches, named as the sources of the text are."""
    if not (run / "branches").is_dir():
        return []
    index, found = _record(run / "data" / "index.json", shapes.TextIndex) or {}, []
    for number, source in enumerate(index.get("sources") or ()):
        folder, scores = run / "branches" / str(number), run / "eval" / f"branch-{number}.json"
        stage = _stage(folder, "original", None)
        if stage.distill is not None:
            found.append(
                BranchFiles(
                    name=source["name"],
                    distill=stage.distill,
                    scores=read_evaluation(scores) if scores.is_file() else None,
                    train_rows=stage.train_rows,
                    heldout_rows=stage.heldout_rows,
                )
            )
    return found


def layers_of(prune: Record) -> tuple[list[int], list[int]]:
    """Layers of the teacher that stay and that do not; of a chain, of the first teacher."""
    first = prune.get("original")
    if first is None:
        return prune.get("kept_layers") or [], prune.get("dropped_layers") or []
    return first["kept_layers"], sorted({*range(first["num_layers"])} - {*first["kept_layers"]})


def _grown(folder: Path) -> dict[int, Path]:
    sizes = {int(found[1]): path for path in folder.glob("grown-*.json") if (found := _GROWN.fullmatch(path.name))}
    return dict(sorted(sizes.items()))


def _exports(run: Path) -> list[ExportFiles]:
    found = []
    for path in sorted((run / "export").glob("*/export.json")):
        made = _record(path, shapes.ExportRecord)
        scores = run / "eval" / f"export-{path.parent.name}.json"
        if made is not None:
            found.append(ExportFiles(made=made, scores=read_evaluation(scores) if scores.is_file() else None))
    return sorted(found, key=lambda each: -each.made["bytes"])


def read_measures(run: Path) -> tuple[Record | None, list[Record]]:
    """A run's record of its training, None where it is not finished, and its logged rows of held-out measures.

    Raises:
        InputError: a file cannot be read.
    """
    record = _record(run / "student" / "distill.json", shapes.TrainingRecord)
    return record, read_log(run)[1]


def read_log(run: Path) -> tuple[list[Record], list[Record]]:
    """A run's logged steps with a loss, and with a held-out loss; one row a step, by step.

    Raises:
        InputError: the log cannot be read.
    """
    rows = _jsonl(run / "train" / "metrics.jsonl", shapes.LoggedStep)
    return _by_step(rows, "loss"), _by_step(rows, "heldout_loss")


def read_training(run: Path) -> Record | None:
    """What a run records of its training, with the hash of all rows read (`rows_sha256`, or None); None of another.

    Raises:
        InputError: a record cannot be read.
    """
    record = _record(run / "student" / "distill.json", shapes.TrainingRecord)
    if record is None or "alpha" not in ((record.get("manifest") or {}).get("config") or {}):
        return None
    logged = _jsonl(run / "train" / "metrics.jsonl", shapes.LoggedStep)
    hashes = [row["rows_sha256"] for row in logged if row.get("step") == record.get("steps") and "rows_sha256" in row]
    return {**record, "rows_sha256": hashes[-1] if hashes else None}


def labels_of(run: Path) -> dict[str, str]:
    """Model key -> its name in the report of a run folder."""
    return _labels(bool(_recipe(run).get("student")))


def _labels(given_student: bool) -> dict[str, str]:
    students = ("student before", "distilled") if given_student else ("cut", "healed")
    return {"teacher": "teacher", "teacher_before": "teacher before", **dict(zip(STUDENTS, students, strict=True))}


def called(label: str) -> str:
    """A student's name in a sentence: the healed student, the student before."""
    return label if label.startswith("student") else f"{label} student"


def _recipe(run: Path) -> Record:
    path = run / "recipe.yaml"
    return load_yaml(path).data if path.is_file() else {}


def read_evaluation(path: Path) -> Record:
    """An eval JSON.

    Raises:
        InputError: it cannot be read, or is none.
    """
    record = read_json(path)
    if not isinstance(record, dict):
        raise InputError(f"{path} holds no JSON object.")
    return shapes.require_shape(shapes.Evaluation, record, path)


def read_items(path: Path) -> list[Record]:
    """The items beside the eval JSON `path`; empty when they are not there."""
    return _jsonl(path.with_name(f"{path.stem}.items.jsonl"), shapes.ItemRecord)


def number(value: Any) -> float | None:
    """A finite number as a float; anything else (text, null, NaN, a boolean) is None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def lower_is_better(metric: str | None) -> bool:
    """Whether a metric counts faults: it is no share, and what is kept of it means nothing."""
    return any(word in (metric or "") for word in _LOWER_IS_BETTER)


def _record(path: Path, shape: Any) -> Record | None:
    if not path.is_file():
        return None
    record = read_json(path)
    if not isinstance(record, dict):
        raise InputError(f"{path} holds no JSON object.")
    return shapes.require_shape(shape, record, path)


def _jsonl(path: Path, shape: Any) -> list[Record]:
    """Rows of a JSON-lines file; a last line that was cut short (a killed run) is left out."""
    if not path.is_file():
        return []
    return shapes.require_shape(list[shape], read_rows(path, damaged="last left out"), path)


def _by_step(rows: list[Record], key: str) -> list[Record]:
    """Rows that have `key`, the last one of each step (a resumed run logs some steps again), in order of step."""
    latest = {row["step"]: row for row in rows if key in row and "step" in row}
    return [latest[step] for step in sorted(latest)]
