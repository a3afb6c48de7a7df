"""`compress verify`: a run folder checked against its own records, and these against each other.

Nothing is trained or measured again, nothing is written, and the network is not asked. What a record says of itself (a
score, a loss) cannot be proved from it; what it says of files, inputs, settings and the order of the data can.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compress.base.disk import read_json
from compress.base.errors import InputError
from compress.data import INDEX
from compress.distill.publish import RECORD
from compress.evaluate.config import unscored, untimed
from compress.report.run_files import MODELS
from compress.run.recipe import load_recipe
from compress.verify import chain
from compress.verify.checks import Check, NotChecked, perform, require, typed
from compress.verify.folder import RunFolder
from compress.verify.models import check_model
from compress.verify.records import check_outputs, read_record
from compress.verify.training import Training, check_checkpoint, check_metrics, check_order, check_uses

__all__ = ["Check", "verify_run"]

_LEFT_BY_RUNS = ("recipe.yaml", "world", "data", "teacher-init", "student-init", "train", "student", "eval")
_SCRATCH = ("teacher", "scratch", "train")


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
    yield from _step(run, "world", "world/world.json", ("world",), {})
    yield from _data(run)
    yield from _initialisation(run)
    if run.trained_teacher:
        yield from _training(run, Training(run.path / "teacher", run.path / "teacher-train"), _SCRATCH)
    yield from _step(run, "student-init", "student-init/prune.json", ("prune",), chain.prune_inputs(run))
    yield from _model(run, "student-init")
    yield from _training(run, Training(run.path / "student", run.path / "train"), ("distill",))
    yield from _evaluations(run)


def _check_recipe(run: RunFolder) -> str:
    load_recipe(run.path / "recipe.yaml")
    return "a valid recipe"


def _step(
    run: RunFolder, name: str, record: str, section: tuple[str, ...], expected: chain.Expected, **fixed: Any
) -> Iterator[Check]:
    """A step's files, its inputs, and its settings where there is a recipe."""
    path = run.path / record
    if not path.is_file():
        if run.recipe is not None and _is_due(run, name):
            yield Check(name, "not checked", f"{path} is not made yet")
        return
    yield perform(name, lambda: check_outputs(path))
    yield from chain.inputs_of(name, path, expected)
    if run.has_recipe:
        yield perform(f"{name}: settings", lambda: chain.check_settings(run, read_record(path), section, **fixed))


def _is_due(run: RunFolder, name: str) -> bool:
    """Whether the recipe makes a step's result."""
    recipe = run.recipe
    assert recipe is not None
    if name == "teacher":
        return recipe.teacher.scratch is not None
    if name == "world":
        return recipe.world is not None
    return name != "eval/speed" or recipe.eval.speed


def _data(run: RunFolder) -> Iterator[Check]:
    path = run.data / INDEX
    if not path.is_file():
        yield Check("data", "not checked", f"{run.data} holds no token store; name the run's with --data")
        return

    def content() -> str:
        run.store.verify()
        outputs = read_record(path).outputs
        if outputs != {shard["file"]: shard["sha256"] for shard in run.store.shards()}:
            raise InputError(f"{path}: manifest.outputs are not the hashes of its shards.")
        rows = f"{run.store.num_rows} + {run.store.num_heldout} rows of {run.store.seq_len} tokens"
        return f"{rows} in {len(outputs)} files, which match their SHA-256"

    yield perform("data", content)
    yield perform("data: made from text", lambda: chain.check_source(run))
    yield perform("data: made with tokenizer", lambda: chain.check_tokenizer(run))
    if run.has_recipe:
        yield perform("data: settings", lambda: chain.check_settings(run, read_record(path), ("data",)))


def _initialisation(run: RunFolder) -> Iterator[Check]:
    path = run.path / "teacher-init" / "init.json"
    if not path.is_file():
        return
    yield perform("teacher-init", lambda: check_outputs(path))
    yield from chain.inputs_of("teacher-init", path, chain.initialisation_inputs(run))
    yield perform("teacher-init: settings", lambda: chain.check_initialisation(run, read_record(path)))
    yield from _model(run, "teacher-init")


def _training(run: RunFolder, training: Training, section: tuple[str, ...]) -> Iterator[Check]:
    """A training's log, data order and checkpoints, and the model it ended with."""
    work = training.work.name
    if training.work.is_dir():
        for path in training.checkpoints():
            yield perform(f"{work}: checkpoint {path.name}", lambda path=path: check_checkpoint(path))  # type: ignore[misc]
        yield perform(f"{work}: log", lambda: check_metrics(training, run.store))
        yield perform(f"{work}: data order", lambda: check_order(training, run.store))
        yield perform(f"{work}: rows used once", lambda: check_uses(training, run.store))
    name = training.out.name
    yield from _step(run, name, f"{name}/{RECORD}", section, chain.training_inputs(run, training.out))
    yield from _model(run, name)


def _model(run: RunFolder, name: str) -> Iterator[Check]:
    if (run.path / name).is_dir():
        yield perform(f"{name}: weights", lambda: check_model(run.path / name))


def _evaluations(run: RunFolder) -> Iterator[Check]:
    others = sorted({path.stem for path in run.path.glob("eval/*.json")} - {*MODELS.values(), "speed"})
    for stem in (*MODELS.values(), *others):
        path = run.path / "eval" / f"{stem}.json"
        expected: chain.Expected = chain.evaluation_inputs(run, stem, path) if path.is_file() else {}
        yield from _step(run, f"eval/{stem}", f"eval/{stem}.json", ("eval",), expected, **untimed())
    yield from _step(run, "eval/speed", "eval/speed.json", ("eval",), chain.speed_inputs(run), **unscored())
    if (run.path / "report.json").is_file():
        yield perform("report.json", lambda: _check_report(run))


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
        raise NotChecked("there is no evaluation beside it")
    return f"shows the {shown} evaluations that are there"
