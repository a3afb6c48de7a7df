"""`OUT.partial/`: a preparation that is under way, owned by one process, and the record that lets another go on."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compress.base.disk import fsync_path, owned, publish_folder, read_json, write_text
from compress.base.errors import InputError
from compress.base.outputs import UNFINISHED, has_fields, has_only
from compress.data.store.index import INDEX

_STATE = "state.json"
_KINDS = "(bin|marks|places|images)"
_NAMES = rf"train-[0-9]{{5,}}\.{_KINDS}(\.partial)?|heldout\.{_KINDS}|(state|index)\.json{UNFINISHED}"
_SOURCES = r"source-[0-9]+(\.partial)?"
"""Names of the files of a preparation, this version's and earlier ones', and of the folders of a blend."""


def partial_of(out: Path) -> Path:
    """Where the store `out` is prepared."""
    return out.with_name(f"{out.name}.partial")


def is_begun(folder: Path) -> bool:
    """Whether all in a folder is a preparation's, by its names and by what its records say; of a blend, all in the
    folders of its sources too."""
    records = [path for path in (folder / INDEX, folder / _STATE) if path.exists()]
    return (
        has_only(f"{_NAMES}|{_SOURCES}")(folder)
        and all(has_fields("identity", "source")(path) for path in records)
        and all(map(is_begun, filter(Path.is_dir, folder.glob("source-*"))))
    )


@contextmanager
def owned_folder(out: Path) -> Iterator[Path]:
    """Create or find `OUT.partial/` and keep other processes out of it.

    Raises:
        UsageError: another process is preparing the same store.
    """
    folder = partial_of(out)
    with owned(folder):
        yield folder


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Record how far the preparation is."""
    write_text(folder / _STATE, json.dumps(state, ensure_ascii=False))


def load_state(folder: Path) -> dict[str, Any] | None:
    """The record of an earlier process, or None when there is none that can be read."""
    try:
        state = read_json(folder / _STATE)
    except InputError:
        return None
    return state if isinstance(state, dict) else None


def begun(out: Path) -> dict[str, Any] | None:
    """`identity`, `source` and perhaps `commit` of a preparation of `out` that an earlier process left, or None.

    It may be complete and lack nothing but its name.
    """
    folder = partial_of(out)
    for name in (INDEX, _STATE):
        try:
            found = read_json(folder / name)
        except InputError:
            continue
        if isinstance(found, dict) and {"identity", "source"} <= found.keys():
            return found
    return None


def can_continue(folder: Path) -> bool:
    """Whether an earlier process left something to go on from: its record, or a store that only lacks its name."""
    return load_state(folder) is not None or (folder / INDEX).is_file()


def forget_state(folder: Path) -> None:
    """Remove the record: the store is complete."""
    (folder / _STATE).unlink(missing_ok=True)
    fsync_path(folder)


def publish(folder: Path, out: Path) -> None:
    """Make a complete store of its folder."""
    forget_state(folder)
    publish_folder(folder, out)


def remove_if_empty(folder: Path) -> None:
    """Leave nothing behind when nothing was done."""
    if not any(folder.iterdir()):
        folder.rmdir()
