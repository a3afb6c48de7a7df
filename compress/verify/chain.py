"""The chain of a run: what each step was made from is still what the step before it left, and what the recipe says."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.base.config import build_from
from compress.base.currency import Inputs, Missing, setting_changes
from compress.base.errors import CompressError, InputError
from compress.data import DataConfig, LocalSource, find_source
from compress.data.store.blend import parts_of
from compress.model.load import load_tokenizer
from compress.model.tokenizer import tokenizer_fingerprint
from compress.verify.checks import Check, perform, require, typed
from compress.verify.folder import RunFolder
from compress.verify.records import read_record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link:
    """A step's record, and what it must agree with."""

    name: str
    """What checks of it are called: student, eval/teacher."""
    record: Path
    inputs: Inputs
    kind: type | None = None
    """The config that its settings are options of."""
    settings: Mapping[str, Any] | None = None
    """What the recipe says; None where there is none that can be read."""
    section: str = ""
    """Where the recipe says it."""


def inputs_of(link: Link) -> Iterator[Check]:
    """One check for each input a record names, against what is there now."""
    try:
        recorded = read_record(link.record).inputs
    except CompressError:
        return  # the check of the record itself says so
    for role in dict.fromkeys([*link.inputs, *recorded]):
        yield perform(f"{link.name}: made from {role}", lambda role=role: _same_input(role, recorded, link.inputs))  # type: ignore[misc]


def _same_input(role: str, recorded: Mapping[str, Any], inputs: Inputs) -> str:
    if role not in inputs:
        raise Missing("nothing here says where it lies")
    if role in recorded and recorded[role] is None:
        return "none was used"
    found = inputs[role]()
    if role not in recorded and found is None:  # an earlier version did not know of it
        return "none was used"
    if role not in recorded:
        raise InputError(f"the manifest does not name {role!r}.")
    if found != recorded[role]:
        raise InputError(f"it is not what the step was made from{_differing(recorded[role], found)}.")
    return "unchanged"


def _differing(recorded: Any, found: Any) -> str:
    if not (isinstance(recorded, dict) and isinstance(found, dict)):
        return ""
    names = sorted(name for name in {*recorded, *found} if recorded.get(name) != found.get(name))
    return f": {', '.join(names[:5])} differ{'s' if len(names) == 1 else ''}"


def check_settings(link: Link) -> str:
    """Whether a step was made with what recipe.yaml says. Options that touch no result may differ."""
    made = read_record(link.record).config
    if link.settings is None:
        raise Missing("recipe.yaml cannot be read")
    require([f"{change} in recipe.yaml" for change in setting_changes(link.kind, made, link.settings)])
    return f"as recipe.yaml says under {link.section}"


def check_tokenizer(run: RunFolder) -> str:
    """Whether the text was tokenized with the tokenizer that the run's models have."""
    models = [run.path / name for name in ("student", "student-init", "teacher", "teacher-init")]
    folder = next((path for path in models if (path / "tokenizer.json").is_file()), None)
    if folder is None:
        raise Missing("no model of the run has a tokenizer.json")
    if tokenizer_fingerprint(load_tokenizer(folder)) != run.store.tokenizer_sha256:
        raise InputError(f"the text was tokenized otherwise than {folder} does.")
    return f"the tokenizer of {folder}"


def check_source(run: RunFolder) -> str:
    """Whether the text's own files, of a blend those of each source, are as they were when they were read; their
    content is read again."""
    made = read_record(run.data / "index.json").config
    config = run.resolved.data if run.resolved else build_from(DataConfig, made)
    recorded = parts_of(typed(run.store.index.get("source"), dict, f"{run.data}: source"))
    if len(config.parts()) != len(recorded):
        raise InputError(f"{run.data} was made from {len(recorded)} sources, and the recipe has {len(config.parts())}.")
    told, unknown = [], []
    for part, entry in zip(config.parts(), recorded, strict=True):
        try:
            told.append(_check_files(part, typed(entry, dict, f"{run.data}: source"), run.data))
        except Missing as missing:
            unknown.append(str(missing))
    if unknown:
        raise Missing("; ".join([*unknown, *told]))
    return "; ".join(told)


def _check_files(config: DataConfig, recorded: Mapping[str, Any], data: Path) -> str:
    """Whether the files of one source are as they were."""
    (name,) = config.datasets
    if recorded.get("kind") != "local":
        raise Missing("the text came from the hub")
    try:
        source = find_source(config)
    except CompressError as error:
        raise Missing(f"the text is not there ({error})") from error
    entries = [typed(entry, dict, f"{data}: source.files") for entry in typed(recorded.get("files"), list, "files")]
    read = sum("sha256" in entry for entry in entries)
    now = source.fingerprint(read)["files"] if isinstance(source, LocalSource) else []
    if _without_times(now) != _without_times(entries):
        raise InputError(f"the files of {name} changed since they were read.")
    return f"the {read} file{'s' if read > 1 else ''} read from {name} {'are' if read > 1 else 'is'} unchanged"


def _without_times(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in entry.items() if key != "mtime_ns"} for entry in entries]
