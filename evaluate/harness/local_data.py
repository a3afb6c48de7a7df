"""Benchmark data from a local folder: `ORG/NAME` is read from `ROOT/ORG/NAME` when that folder exists.

While `local_datasets` is open, it stands in for `datasets.load_dataset` (see `patches.data_sets_from`).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import datasets

from compress.base.disk import sha256_file, sha256_json
from compress.base.errors import InputError, reason_of
from compress.evaluate.harness.patches import data_sets_from

_LOOK_UP_S = 10.0
_load_dataset = datasets.load_dataset
_root: ContextVar[Path | None] = ContextVar("datasets_root", default=None)
_last: ContextVar["tuple[str, Splits] | None"] = ContextVar("last_local_dataset", default=None)
_read: ContextVar[set[str] | None] = ContextVar("local_datasets_read", default=None)


class DatasetUnavailable(InputError):
    """A benchmark's data set could not be loaded: `dataset` is its hub id."""

    def __init__(self, dataset: str, reason: str) -> None:
        super().__init__(reason)
        self.dataset = dataset


class Splits(datasets.DatasetDict):  # type: ignore[misc]
    """A data set read from a folder. A split the folder lacks is an empty table, and is noted in `absent`.

    Tasks name splits they may never use (a training split at zero shots): a folder with the test split alone runs.
    """

    absent: tuple[str, ...] = ()

    def __missing__(self, split: str) -> Any:
        self.absent = tuple(dict.fromkeys([*self.absent, split]))
        return next(iter(self.values())).select(range(0))


@contextmanager
def local_datasets(root: Path | None) -> Iterator[set[str]]:
    """Let `datasets.load_dataset` read from `root` while the block runs; None changes nothing but the errors.

    The value is the hub ids of the data sets that were read from there so far.

    Raises (from inside the block):
        DatasetUnavailable: a data set is neither under `root` nor reachable on the hub.
    """
    token, read = _root.set(root), set[str]()
    reading = _read.set(read)
    try:
        with data_sets_from(_load):
            yield read
    finally:
        _root.reset(token)
        _read.reset(reading)


def is_local(root: Path | None, dataset: str) -> bool:
    """Whether `dataset` (ORG/NAME) has a folder under `root`."""
    return root is not None and (root / dataset).is_dir()


def why_not_on_hub(dataset: str) -> str | None:
    """Why the hub would not give a data set, in one request; None if it would, or gave it before."""
    from huggingface_hub import HfApi

    if (Path(datasets.config.HF_DATASETS_CACHE) / dataset.replace("/", "___")).is_dir():
        return None
    try:
        HfApi().dataset_info(dataset, timeout=_LOOK_UP_S)
    except Exception as error:  # whatever the hub, or the way to it, is lacking
        return reason_of(error)
    return None


def data_fingerprint(root: Path, names: Iterable[str]) -> dict[str, str | None]:
    """One SHA-256 for the files of each data set ORG/NAME under `root`; None for one that is not there."""
    found = {name: folder_fingerprint(root / name) for name in sorted(names)}
    return {name: sha256_json(files) if files else None for name, files in found.items()}


def folder_fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of each file under `folder` but for hidden ones (of download tools) and compiled Python."""
    files = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name.as_posix(): sha256_file(path)
        for name, path in files.items()
        if not any(part.startswith(".") or part == "__pycache__" for part in name.parts)
    }


def last_local_splits() -> str:
    """What the folder read last has and lacks, as a sentence; empty when none was read."""
    last = _last.get()
    if last is None or not last[1].absent:
        return ""
    dataset, splits = last
    return f" {dataset} has the split {', '.join(map(str, splits))} there, and lacks {', '.join(splits.absent)}."


def _load(path: str, name: str | None = None, *args: Any, **kwargs: Any) -> Any:
    """`datasets.load_dataset`, looking under the root first."""
    # A task module that imports this by name keeps it after the block: the root is looked up at each call.
    root = _root.get()
    local = is_local(root, path)
    try:
        if root is not None and local:
            kwargs["cache_dir"] = _cache_folder(root / path)
            loaded = _load_dataset(str(root / path), name, *args, **kwargs)
            if (read := _read.get()) is not None:
                read.add(path)
        else:
            loaded = _load_dataset(path, name, *args, **kwargs)
    except Exception as error:
        raise DatasetUnavailable(path, reason_of(error)) from error
    if not local or not isinstance(loaded, datasets.DatasetDict):
        return loaded
    splits = Splits(loaded)
    _last.set((path, splits))
    return splits


def _cache_folder(folder: Path) -> str:
    """A cache of its own for each state of a folder.

    `datasets` keys the tables it keeps by a folder's name and its card, so that two folders of one name, or one whose
    files changed, would share them.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    state = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "compress" / sha256_json(state))
