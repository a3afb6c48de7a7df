"""From what the user names to evaluations with their items: eval JSONs, run folders, names of one's own."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from compress.base.errors import InputError
from compress.report.run_files import MODELS, Record, labels_of, read_evaluation, read_items, read_log, read_training


@dataclass(frozen=True, slots=True)
class Model:
    """An evaluated model: its name on the page, its eval JSON, its items (empty where there are none), and where it is
    a run's student what is recorded of its training, and the log of it: steps with a loss, and with a held-out one."""

    label: str
    record: Record
    items: list[Record]
    training: Record | None
    log: tuple[list[Record], list[Record]]


def read_models(sources: Sequence[str]) -> list[Model]:
    """The evaluations that `sources` stand for, in order, equal ones once; a name that comes twice gets its path too.

    Raises:
        InputError: a source does not exist, holds no evaluation, or cannot be read.
    """
    found: list[Model] = []
    for source in sources:
        for label, path in _evaluations(source):
            record = read_evaluation(path)
            same = next((model for model in found if _results(model.record) == _results(record)), None)
            if same is not None:
                continue
            if label in (model.label for model in found):
                label = f"{label} ({path})"
            run = _trained_by(path)
            training, log = (None, ([], [])) if run is None else (read_training(run), read_log(run))
            found.append(Model(label, record, read_items(path), training, log))
    return found


def _evaluations(source: str) -> Iterator[tuple[str, Path]]:
    """(name, eval JSON) of what one source stands for."""
    name, equals, rest = source.partition("=")
    named = bool(equals and name) and not Path(source).exists()
    path = Path(rest if named else source)
    if path.is_file():
        yield name if named else _name_of(path), path
        return
    if not path.is_dir():
        raise InputError(
            f"{path} does not exist; give eval JSONs (from `compress eval --out FILE.json`) or run folders."
        )
    run = name if named else _folder_name(path)
    paths = {key: path / "eval" / f"{stem}.json" for key, stem in MODELS.items()}
    there = {key: each for key, each in paths.items() if each.is_file()}
    if not there:
        raise InputError(f"{path} has no evaluation in {path / 'eval'}: it is no run folder, or was not evaluated yet.")
    labels = labels_of(path)
    for key, each in there.items():
        yield f"{run} {labels[key]}", each


def _trained_by(path: Path) -> Path | None:
    """The run whose student was evaluated there."""
    of_student = path.parent.name == "eval" and path.stem == MODELS["student"]
    return path.parent.parent if of_student else None


def _name_of(path: Path) -> str:
    """`runs/demo/eval/student.json` -> `demo healed`; elsewhere the file's stem."""
    keys = {stem: key for key, stem in MODELS.items()}
    if path.parent.name == "eval" and path.stem in keys:
        run = path.parent.parent
        return f"{_folder_name(run)} {labels_of(run)[keys[path.stem]]}"
    return path.stem


def _folder_name(path: Path) -> str:
    """A folder's own name, as the user sees it: links are not followed."""
    return os.path.basename(os.path.abspath(path))


def _results(record: Record) -> tuple[object, ...]:
    """What makes two evaluations one: the same model, the same prompts, and the same numbers."""
    inputs = (record.get("manifest") or {}).get("inputs") or {}
    measured = (record.get(part) for part in ("prompting", "heldout", "fidelity", "other_text"))
    return inputs.get("model"), record["tasks"], *measured
