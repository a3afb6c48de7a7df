"""`compress verify`: a run folder checked against its own records, and these against each other.

Nothing is trained or measured again, nothing is written, and the network is not asked. What a record says of itself (a
score, a loss) cannot be proved from it; what it says of files, inputs, settings and the order of the data can.
"""

from collections.abc import Iterator
from pathlib import Path

from compress.base.currency import Missing
from compress.base.disk import read_json
from compress.base.errors import InputError
from compress.data import INDEX
from compress.data.store.index import hashes_of
from compress.distill.publish import RECORD
from compress.report.run_files import MODELS
from compress.run.layout import Layout
from compress.run.recipe import load_recipe
from compress.ship.exporting.record import RECORD as EXPORTED
from compress.ship.merging.config import RECORD as MERGED
from compress.verify.chain import Link, check_settings, check_source, check_tokenizer, inputs_of
from compress.verify.checks import Check, perform, require, typed
from compress.verify.folder import RunFolder
from compress.verify.links import links_of
from compress.verify.models import check_model
from compress.verify.records import check_outputs, read_record
from compress.verify.training import Training, check_checkpoint, check_metrics, check_order, check_uses

__all__ = ["Check", "verify_run"]

_LEFT_BY_RUNS = (
    "recipe.yaml", "world", "data", "teacher-trimmed", "teacher-init", "teacher-cache", "student-init", "train",
    "branches", "student", "grow", "export", "eval",
)  # fmt: skip


def verify_run(path: Path, data: Path | None = None) -> Iterator[Check]:
    """Check a run folder of `compress run` or `compress distill`, finished or not, and yield each check as it is done.

    Args:
        path: the run folder.
        data: its token store, where the run used one outside of its folder.

    Raises:
        InputError: there is no such folder, or nothing in it that a run leaves.
    """
    if not path.is_dir():
        raise InputError(f"The run folder {path} does not exist.")
    if not any((path / name).exists() for name in _LEFT_BY_RUNS):
        raise InputError(f"{path} is no run folder: it has none of {', '.join(_LEFT_BY_RUNS)}.")
    yield from _all_checks(RunFolder(path, data))


def _all_checks(run: RunFolder) -> Iterator[Check]:
    if run.has_recipe:
        yield perform("recipe.yaml", lambda: _check_recipe(run))
    for link in links_of(run):
        if link.name == "data":
            yield from _data(run, link)
        elif link.record.name == RECORD:
            yield from _training(run, link)
        else:
            yield from _step(run, link)
        is_export = link.record.name == EXPORTED and any(link.record.parent.glob("*.safetensors"))
        if link.record.name in (RECORD, "prune.json", "trim.json", "init.json", MERGED) or is_export:
            yield from _model(link)
        if link.record.name == "grow.json" and link.record.is_file():
            for folder in sorted(path.parent for path in link.record.parent.glob("*/grow.json")):
                yield perform(f"{link.name}/{folder.name}: weights", lambda folder=folder: check_model(folder))  # type: ignore[misc]
    if (run.path / "report.json").is_file():
        yield perform("report.json", lambda: _check_report(run))


def _check_recipe(run: RunFolder) -> str:
    load_recipe(run.path / "recipe.yaml")
    return "a valid recipe"


def _step(run: RunFolder, link: Link) -> Iterator[Check]:
    """A step's files, its inputs, and its settings where there is a recipe."""
    if not link.record.is_file():
        if run.recipe is not None:
            yield Check(link.name, "not checked", f"{link.record} is not made yet")
        return
    yield perform(link.name, lambda: check_outputs(link.record))
    yield from inputs_of(link)
    yield from _settings(run, link)


def _settings(run: RunFolder, link: Link) -> Iterator[Check]:
    if run.has_recipe:
        yield perform(f"{link.name}: settings", lambda: check_settings(link))


def _data(run: RunFolder, link: Link) -> Iterator[Check]:
    path = run.data / INDEX
    if not path.is_file():
        yield Check("data", "not checked", f"{run.data} holds no token store; name the run's with --data")
        return

    def content() -> str:
        run.store.verify()
        outputs = read_record(path).outputs
        if outputs != hashes_of(run.store.index):
            raise InputError(f"{path}: manifest.outputs are not the hashes of its shards.")
        rows = f"{run.store.num_rows} + {run.store.num_heldout} rows of {run.store.seq_len} tokens"
        return f"{rows} in {len(outputs)} files, which match their SHA-256"

    yield perform("data", content)
    yield perform("data: made from text", lambda: check_source(run))
    yield perform("data: made with tokenizer", lambda: check_tokenizer(run))
    yield from _settings(run, link)


def _training(run: RunFolder, link: Link) -> Iterator[Check]:
    """A training's log, data order and checkpoints, and the model it ended with."""
    out = link.record.parent
    training = Training(out, Layout(run.path).training(out))
    work = training.work.relative_to(run.path).as_posix()
    if training.work.is_dir():
        for path in training.checkpoints():
            yield perform(f"{work}: checkpoint {path.name}", lambda path=path: check_checkpoint(path))  # type: ignore[misc]
        for name, check in (("log", check_metrics), ("data order", check_order), ("rows used once", check_uses)):
            yield perform(f"{work}: {name}", lambda check=check: check(training, run.store_of(out)))  # type: ignore[misc]
    yield from _step(run, link)


def _model(link: Link) -> Iterator[Check]:
    folder = link.record.parent
    if folder.is_dir():
        yield perform(f"{link.name}: weights", lambda: check_model(folder))


def _check_report(run: RunFolder) -> str:
    """Whether the report shows the evaluations that are there."""
    report = typed(read_json(run.path / "report.json"), dict, f"{run.path / 'report.json'}")
    shown = 0
    faults = []
    for key, stem in MODELS.items():
        path = run.path / "eval" / f"{stem}.json"
        record = read_json(path) if path.is_file() else None
        shown += record is not None
        if report.get(key) != record:
            faults.append(f"its scores of {stem} are not those of {path}; `compress report {run.path}` writes it anew")
    require(faults)
    if not shown:
        raise Missing("there is no evaluation beside it")
    return f"shows the {shown} evaluations that are there"
