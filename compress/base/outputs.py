"""An output is ours or free: whatever a command will write is looked at before anything is done.

A path is free where nothing is, or an empty file or folder. It is ours when its own content says that this tool made
it: an earlier result of the same kind, which is replaced or gone on with. Anything else is the user's, and nothing is
written over it; nor is a link followed, a device written to, or anything put into a model's folder.
"""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from compress.base.errors import Faults, UsageError

MADE_BY = "made_by"
"""The field of a JSON file that names the command it was written by."""
UNFINISHED = r"(\.compress-partial|\.partial)?"
"""What the name of a file that is being written ends with, in this version and earlier ones (a regular expression)."""
_LONGEST_RESULT = 1 << 28  # characters, far more than any of our JSON files has
_MODEL = "config.json"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin")


@dataclasses.dataclass(frozen=True)
class Output:
    """A path that a command is going to write."""

    path: Path
    what: str
    """What it will be, for a message: `an evaluation`."""
    ours: Callable[[Path], bool] | None
    """Whether the content that is there is of that kind, and made by this tool; None where the path must be free."""
    folder: bool = False


def into(folder: Path, what: str) -> Output:
    """A folder that may hold whatever it likes beside what a command leaves in it, but no model."""
    return Output(folder, what, lambda path: not is_model_folder(path), folder=True)


def check_outputs(outputs: Iterable[Output], faults: Faults) -> None:
    """Find which of these paths are neither ours nor free, or cannot be written; not what lies in a folder of those."""
    refused = set[Path]()
    for output in outputs:
        if refused.isdisjoint(output.path.parents) and not faults.of(functools.partial(_check, output)):
            refused.add(output.path)


def require_outputs(*outputs: Output) -> None:
    """Refuse paths that are neither ours nor free.

    Raises:
        UsageError: all of them, and why.
    """
    faults = Faults()
    check_outputs(outputs, faults)
    faults.refuse()


def _check(output: Output) -> bool:
    """True, if the path may be written.

    Raises:
        UsageError: it may not.
    """
    try:
        _check_place(output)
        _check_content(output)
    except OSError as error:
        raise UsageError(f"The output {output.path} cannot be looked at: {error.strerror}.") from error
    return True


def _check_place(output: Output) -> None:
    """Refuse links and whatever is no file or folder as asked for, and places that cannot be written."""
    path, what = output.path, output.what
    if path.is_symlink():
        raise UsageError(
            f"The output {path} is a link to {os.readlink(path)}: nothing is written through links; name the place "
            "itself, or another."
        )
    _check_way(output)
    if output.ours is None and path.name in ("", ".."):
        raise UsageError(f"The output {path} has no name of its own, and is to be a new folder: name one.")
    here = path.exists()
    if here and output.folder and not path.is_dir():
        raise UsageError(f"The output {path} is a file, and {what} is a folder: name one that does not exist yet.")
    if here and not output.folder and not path.is_file():
        kind = "a folder" if path.is_dir() else "a device, a pipe or a socket"
        raise UsageError(f"The output {path} is {kind}, and {what} is a file: name one that does not exist yet.")


def _check_content(output: Output) -> None:
    """Refuse what is taken by something that is not ours, and a model's folder."""
    path, what = output.path, output.what
    taken = path.exists() and not _is_empty(path)
    ours = taken and output.ours is not None and output.ours(path)
    home = path if output.folder else path.parent
    if is_model_folder(home) and not ours:
        place = "is" if home == path else f"would lie in {home},"
        raise UsageError(f"The output {path} {place} the folder of a model: name a place outside it.")
    if taken and not ours:
        there = f"The output folder {path} is not empty" if output.folder else f"The output {path} is there already"
        other = "" if output.ours is None else f", and is not {what} that this tool made"
        raise UsageError(f"{there}{other}: nothing is written over it. Name another place, or move it away.")


def _check_way(output: Output) -> None:
    """Refuse a path that leads through a file, or into a folder that cannot be written."""
    path = output.path
    near = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    home = near if near.is_dir() else near.parent
    if near not in (path, home):
        what = "a link to nothing" if near.is_symlink() else "a file"
        raise UsageError(f"The output {path} cannot be made: {near} is {what}. Name another place.")
    if not os.access(home, os.W_OK | os.X_OK):
        raise UsageError(f"The output {path} cannot be written: no permission in {home}.")


def _is_empty(path: Path) -> bool:
    return not any(path.iterdir()) if path.is_dir() else path.stat().st_size == 0


def is_model_folder(folder: Path) -> bool:
    """Whether a model lies in the folder."""
    return (folder / _MODEL).is_file() and any(any(folder.glob(pattern)) for pattern in _WEIGHTS)


def read_object(path: Path, *, row: bool = False) -> dict[str, Any]:
    """The object in a JSON file, or with `row` in the first line of a file of JSON lines; empty where it holds none."""
    try:
        if not path.is_file():
            return {}
        with path.open(encoding="utf-8") as file:
            content = json.loads(file.readline(_LONGEST_RESULT) if row else file.read(_LONGEST_RESULT))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def has_fields(*names: str) -> Callable[[Path], bool]:
    """Whether a JSON file is an object with these fields: the shape of what is ours."""
    return lambda path: set(names) <= read_object(path).keys()


def has_rows(*names: str) -> Callable[[Path], bool]:
    """Whether the first line of a file of JSON lines is an object with these fields."""
    return lambda path: set(names) <= read_object(path, row=True).keys()


def has_manifest(*names: str) -> Callable[[Path], bool]:
    """Whether a JSON file has the manifest that makes it a result, and these fields."""

    def ours(path: Path) -> bool:
        content = read_object(path)
        made = content.get("manifest")
        return (
            set(names) <= content.keys()
            and isinstance(made, dict)
            and all(isinstance(made.get(part), dict) for part in ("config", "inputs", "outputs"))
        )

    return ours


def has_record(name: str) -> Callable[[Path], bool]:
    """Whether a folder has the record of a finished step, with its manifest."""
    return lambda folder: has_manifest()(folder / name)


def has_only(pattern: str) -> Callable[[Path], bool]:
    """Whether all names in a folder are those that unfinished work of ours has (a regular expression)."""
    names = re.compile(pattern)
    return lambda folder: not folder.is_file() and all(names.fullmatch(path.name) for path in folder.glob("*"))


def beside(path: Path, name: str) -> Path:
    """The path of that name in the same folder; what has no name itself, like `.`, is refused when it is looked at."""
    return path.parent / name
