"""The chain of a run: what each step was made from is still what the step before it left, and what the recipe says."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.base.config import build_from
from compress.base.disk import sha256_json, sha256_tree
from compress.base.errors import CompressError, InputError
from compress.data import DataConfig, LocalSource, find_source
from compress.distill.config import MAY_CHANGE_AT_RESUME
from compress.evaluate.evaluation import benchmark_inputs
from compress.model.load import load_tokenizer
from compress.model.tokenizer import tokenizer_fingerprint
from compress.prune import WITHOUT_TEXT, RankAfterConfig, RankingConfig, prune_settings
from compress.prune.choose.calibration import calibration_fingerprint
from compress.run.pipeline import asked_cut
from compress.verify.checks import Check, NotChecked, perform, require, typed
from compress.verify.folder import RunFolder
from compress.verify.records import StepRecord, read_record

_NOT_CONTENT = frozenset({"num_proc"})
_PLACEHOLDER = re.compile(r"\\\$(?:RUN|DEMO)")

Expected = Mapping[str, Callable[[], Any]]


def inputs_of(name: str, path: Path, expected: Expected) -> Iterator[Check]:
    """One check for each input a record names, against what `expected` finds there now."""
    try:
        recorded = read_record(path).inputs
    except CompressError:
        return  # the check of the record itself says so
    for role in dict.fromkeys([*expected, *recorded]):
        yield perform(f"{name}: made from {role}", lambda role=role: _same_input(role, recorded, expected))  # type: ignore[misc]


def _same_input(role: str, recorded: Mapping[str, Any], expected: Expected) -> str:
    if role not in recorded:
        raise InputError(f"the manifest does not name {role!r}.")
    if role not in expected:
        raise NotChecked("this version does not know such an input")
    if recorded[role] is None:
        return "none was used"
    found = expected[role]()
    if found != recorded[role]:
        raise InputError(f"it is not what the step was made from{_differing(recorded[role], found)}.")
    return "unchanged"


def _differing(recorded: Any, found: Any) -> str:
    if not (isinstance(recorded, dict) and isinstance(found, dict)):
        return ""
    names = sorted(name for name in {*recorded, *found} if recorded.get(name) != found.get(name))
    return f": {', '.join(names[:5])} differ{'s' if len(names) == 1 else ''}"


def prune_inputs(run: RunFolder) -> Expected:
    """Inputs of RUN/student-init/prune.json."""
    expected: dict[str, Callable[[], Any]] = {"teacher": lambda: run.fingerprint(run.teacher())}
    if run.resolved is not None:
        asked, choice = asked_cut(run.resolved, run.path)
        measured = isinstance(choice, RankingConfig) and choice.by not in WITHOUT_TEXT
        if measured or (isinstance(choice, RankAfterConfig) and choice.reads_text):
            expected["calibration"] = lambda: calibration_fingerprint(asked.calibration)
        if isinstance(choice, RankAfterConfig):
            expected["data"] = lambda: {"store": run.store.fingerprint}
        if asked.repair:
            expected["repair"] = lambda: calibration_fingerprint(asked.calibration)
    return expected


def initialisation_inputs(run: RunFolder) -> Expected:
    """Inputs of RUN/teacher-init/init.json."""

    def tokenizer() -> dict[str, str]:
        scratch = run.resolved.teacher.scratch if run.resolved else None
        if scratch is None or not Path(scratch.tokenizer).is_dir():
            raise NotChecked("the tokenizer's folder is not there")
        return sha256_tree(Path(scratch.tokenizer), "*.json")

    return {"tokenizer": tokenizer}


def training_inputs(run: RunFolder, out: Path) -> Expected:
    """Inputs of a training's distill.json and of its checkpoints."""
    return {
        "student": lambda: sha256_json(run.fingerprint(run.start_of(out))),
        "teacher": lambda: sha256_json(run.fingerprint(run.teacher())),
        "data": lambda: run.store.fingerprint,
    }


def evaluation_inputs(run: RunFolder, stem: str, path: Path) -> Expected:
    """Inputs of the evaluation `path`, RUN/eval/STEM.json."""

    def text() -> dict[str, str]:
        if "store" not in typed(read_record(path).inputs["text"], dict, f"{path}: manifest.inputs.text"):
            raise NotChecked("it was measured on a text of its own")
        return {"store": run.store.fingerprint}

    def benchmarks() -> dict[str, Any] | None:
        if run.resolved is None:
            raise NotChecked("the recipe, which says where they lie, is not there")
        recorded = typed(read_record(path).inputs["benchmarks"], dict, f"{path}: manifest.inputs.benchmarks")
        names = typed(recorded.get("datasets"), dict, f"{path}: manifest.inputs.benchmarks.datasets")
        found = benchmark_inputs(run.resolved.eval, names)
        if found is not None:
            absent = [name for name, content in found["datasets"].items() if content is None]
            absent += ["the task folder"] if recorded.get("task_folder") and not found["task_folder"] else []
            if absent:
                raise NotChecked(f"not there: {', '.join(absent)}")
        return found

    return {
        "model": lambda: run.fingerprint(run.measured(stem)),
        "teacher": lambda: run.fingerprint(run.teacher()),
        "text": text,
        "benchmarks": benchmarks,
    }


def speed_inputs(run: RunFolder) -> Expected:
    """Inputs of RUN/eval/speed.json."""
    return {
        stem: lambda stem=stem: run.fingerprint(run.measured(stem))  # type: ignore[misc]
        for stem in ("teacher", "student-init", "student")
    }


def check_tokenizer(run: RunFolder) -> str:
    """Whether the text was tokenized with the tokenizer that the run's models have."""
    models = [run.path / name for name in ("student", "student-init", "teacher", "teacher-init")]
    folder = next((path for path in models if (path / "tokenizer.json").is_file()), None)
    if folder is None:
        raise NotChecked("no model of the run has a tokenizer.json")
    if tokenizer_fingerprint(load_tokenizer(folder)) != run.store.tokenizer_sha256:
        raise InputError(f"the text was tokenized otherwise than {folder} does.")
    return f"the tokenizer of {folder}"


def check_source(run: RunFolder) -> str:
    """Whether the text's own files are as they were when they were read; their content is read again."""
    index = run.store.index
    recorded = typed(index.get("source"), dict, f"{run.data}: source")
    if recorded.get("kind") != "local":
        raise NotChecked("the text came from the hub")
    made = read_record(run.data / "index.json").config
    config = run.resolved.data if run.resolved else build_from(DataConfig, made)
    try:
        source = find_source(config)
    except CompressError as error:
        raise NotChecked(f"the text is not there ({error})") from error
    entries = [typed(entry, dict, f"{run.data}: source.files") for entry in typed(recorded.get("files"), list, "files")]
    read = sum("sha256" in entry for entry in entries)
    now = source.fingerprint(read)["files"] if isinstance(source, LocalSource) else []
    if _without_times(now) != _without_times(entries):
        raise InputError(f"the files of {config.dataset} changed since they were read.")
    return (
        f"the {read} file{'s' if read > 1 else ''} read from {config.dataset} {'are' if read > 1 else 'is'} unchanged"
    )


def _without_times(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in entry.items() if key != "mtime_ns"} for entry in entries]


def check_settings(run: RunFolder, record: StepRecord, section: Sequence[str], **fixed: Any) -> str:
    """Whether a step was made with what recipe.yaml says; `fixed` are options that the run sets by itself.

    Options that touch no result may differ, and so may the folder that stands for `$RUN`.
    """
    full, written = run.settings(*section)
    if section == ("prune",) and run.recipe is not None:
        asked, choice = asked_cut(run.recipe, run.path)
        full = written = prune_settings(choice, **asked.how)
    known = fixed.keys() & record.config.keys()
    require(differences({**full, **fixed}, {*written, *known}, record.config))
    return f"as recipe.yaml says under {'.'.join(section)}"


def check_initialisation(run: RunFolder, record: StepRecord) -> str:
    """Whether the teacher from scratch was begun as recipe.yaml says."""
    scratch = run.recipe.teacher.scratch if run.recipe else None
    if scratch is None:
        raise NotChecked("recipe.yaml names no teacher from scratch")
    full = {"architecture": scratch.architecture, "seed": scratch.train.seed}
    require(differences(full, set(full), record.config))
    return "as recipe.yaml says under teacher.scratch"


def differences(full: Mapping[str, Any], written: set[str], made: Mapping[str, Any]) -> list[str]:
    """What differs between a recipe's section and a manifest's config.

    `full` has every default; an option in neither the manifest nor what is `written` is newer than the run.
    """
    allowed = MAY_CHANGE_AT_RESUME | _NOT_CONTENT
    names = [name for name in dict.fromkeys([*made, *sorted(written)]) if name not in allowed]
    return [
        f"{name} was {made.get(name)!r} and recipe.yaml says {full.get(name)!r}"
        for name in names
        if not _same(full.get(name), made.get(name))
    ]


def _same(written: Any, made: Any) -> bool:
    """Whether a value of a recipe is the manifest's, which has paths for `$RUN` and `$DEMO`."""
    if isinstance(written, str) and isinstance(made, str):
        return re.fullmatch(_PLACEHOLDER.sub(".*", re.escape(written)), made, re.DOTALL) is not None
    if isinstance(written, dict) and isinstance(made, dict):
        return written.keys() == made.keys() and all(_same(written[key], made[key]) for key in written)
    if isinstance(written, list | tuple) and isinstance(made, list):
        return len(written) == len(made) and all(map(_same, written, made))
    return bool(written == made)
