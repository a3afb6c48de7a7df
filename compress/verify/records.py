"""The manifests that steps leave, and the files they vouch for."""

import dataclasses
from pathlib import Path, PurePosixPath
from typing import Any

from compress.base.disk import read_json, sha256_file
from compress.verify.checks import require, typed


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """A step's record: `data` is the whole file, the rest its manifest. Outputs map a file beside it to its SHA-256."""

    path: Path
    data: dict[str, Any]
    config: dict[str, Any]
    inputs: dict[str, Any]
    outputs: dict[str, str]


def read_record(path: Path) -> StepRecord:
    """Read a record.

    Raises:
        InputError: the file is no JSON, or has no manifest; the message names it and the field.
    """
    data = typed(read_json(path), dict, str(path))
    made = typed(data.get("manifest"), dict, f"{path}: manifest")
    config, inputs, outputs = (
        typed(made.get(name), dict, f"{path}: manifest.{name}") for name in ("config", "inputs", "outputs")
    )
    return StepRecord(path, data, config, inputs, outputs)


def check_outputs(path: Path) -> str:
    """Compare the files that the record `path` names with their SHA-256; others beside them do not matter."""
    record = read_record(path)
    listed = record.data.get("sha256")
    require(
        ([f"{path}: sha256 and manifest.outputs differ"] if listed not in (None, record.outputs) else [])
        + differing_files(path.parent, record.outputs)
    )
    return count_files(record.outputs)


def count_files(outputs: dict[str, str]) -> str:
    """How many files match, in words."""
    if not outputs:
        return "a whole record, which names no files"
    return f"{len(outputs)} file{'s match their' if len(outputs) > 1 else ' matches its'} SHA-256"


def differing_files(folder: Path, outputs: dict[str, str]) -> list[str]:
    """What is wrong with the files of a folder, by their SHA-256."""
    faults = []
    for name, expected in outputs.items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
            faults.append(f"{name!r} is no path inside {folder}")
        elif not (folder / name).is_file():
            faults.append(f"{folder / name} is missing")
        elif sha256_file(folder / name) != expected:
            faults.append(f"{folder / name} does not match its SHA-256")
    return faults
