"""Where text comes from: local files, or the data files of a hub dataset read over the network as a stream.

Both are a list of files in a fixed order, so a position is (file, row) and reading can go on from any position.
"""

import glob
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from compress.base.disk import sha256_file
from compress.base.errors import InputError, UsageError
from compress.data.config import DataConfig
from compress.data.sources.hub import HubSource
from compress.data.sources.readers import FORMATS, DataFile, Layout, layout_of

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


class Source(Protocol):
    """An ordered list of data files that can be opened."""

    @property
    def files(self) -> list[DataFile]:
        """The data files, in reading order."""

    def connect(self) -> None:
        """Find out what the files are; comes before everything but `matches` and may raise what the network raises."""

    def open(self, index: int) -> BinaryIO:
        """Open a file for reading from its start."""

    def full_name(self, index: int) -> str:
        """What to call a file in a message."""

    def failure(self, file: BinaryIO | None) -> Exception | None:
        """What cut the connection behind an open file (or behind opening it), when that is why reading failed."""

    def listing(self) -> dict[str, Any]:
        """What identifies the source without reading it: kind, names, sizes or commit."""

    def fingerprint(self, num_read: int) -> dict[str, Any]:
        """What identifies the content of the first `num_read` files, as JSON data for the index."""

    def matches(self, recorded: Mapping[str, Any]) -> bool:
        """Whether `recorded`, a fingerprint, is of this source as it is now."""


def find_source(config: DataConfig, commit: str | None = None) -> Source:
    """The source a config names; a local path wins over a hub dataset of the same name.

    `commit` pins a hub dataset to an earlier state of it.

    Raises:
        UsageError: options that do not go with the source, or files of several formats.
        InputError: no such file or dataset, or nothing in it that can be read.
    """
    name = config.dataset
    hub = name.startswith("hub:")
    if not hub:
        path = Path(name).expanduser()
        if path.exists() or glob.has_magic(name):
            return _local(config, path)
        if not _HUB_NAME.fullmatch(name) or layout_of(name):
            raise InputError(
                f"The data {name} does not exist. Give a local file, folder or glob of {FORMATS}, or a hub dataset "
                "as ORG/NAME."
            )
    repository, _, in_name = name.removeprefix("hub:").partition(":")
    if not _HUB_NAME.fullmatch(repository):
        raise UsageError(f"data.dataset = {name!r} is not a hub dataset; write hub:ORG/NAME or hub:ORG/NAME:CONFIG.")
    if in_name and config.config not in (None, in_name):
        raise UsageError(
            f"data.dataset names the configuration {in_name!r} and data.config {config.config!r}; keep one."
        )
    if config.tokens is None:
        raise UsageError(
            f"data.tokens is required for a hub dataset ({repository}): how much of it to prepare, e.g. 40M."
        )
    return HubSource(repository, in_name or config.config, config.split, commit)


def _local(config: DataConfig, path: Path) -> "LocalSource":
    for field, given in (("config", config.config is not None), ("split", config.split != "train")):
        if given:
            raise UsageError(f"data.{field} applies to hub datasets; {config.dataset} is local. Leave it out.")
    if path.is_dir():
        base = path
        found = [p for p in sorted(path.rglob("*")) if p.is_file() and _belongs(p.relative_to(path))]
    elif path.is_file():
        base, found = path.parent, [path]
        if layout_of(path.name) is None:
            raise InputError(f"{path} has none of the known endings: {FORMATS}.")
    elif path.exists():
        raise InputError(f"{path} is neither a file nor a folder: give text in files of {FORMATS}.")
    else:
        matches = [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
        found = [p for p in matches if p.is_file() and layout_of(p.name)]
        base = Path(str(path)[: re.search(r"[*?[]", str(path)).start()]).parent  # type: ignore[union-attr]
        base = base if all(p.is_relative_to(base) for p in found) else Path()
    if not found:
        raise InputError(f"{config.dataset} has no data files: {FORMATS}.")
    formats = sorted({cast(Layout, layout_of(p.name)).format for p in found})
    if len(formats) > 1:
        raise UsageError(
            f"{config.dataset} has files of several formats ({', '.join(formats)}); name the ones you mean with a glob "
            f"like {path if path.is_dir() else base}/*.{formats[0]}."
        )
    return LocalSource(base, found)


def _belongs(path: Path) -> bool:
    """Whether a file in a data folder is data: not hidden, and no plain .json, which there is metadata."""
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and path.suffix.lower() != ".json" and layout_of(path.name) is not None


class LocalSource:
    """Files on this machine, identified by SHA-256, which is trusted while size and change time stay the same."""

    def __init__(self, base: Path, paths: list[Path]) -> None:
        self._paths = paths
        self._stats = [path.stat() for path in paths]
        self.files = [
            DataFile(path.relative_to(base).as_posix(), cast(Layout, layout_of(path.name)), stat.st_size)
            for path, stat in zip(paths, self._stats, strict=True)
        ]

    def connect(self) -> None:
        return

    def open(self, index: int) -> BinaryIO:
        return self._paths[index].open("rb")

    def full_name(self, index: int) -> str:
        return str(self._paths[index])

    def failure(self, file: BinaryIO | None) -> Exception | None:
        return None

    def listing(self) -> dict[str, Any]:
        return {"kind": "local", "files": [self._entry(i) for i in range(len(self.files))]}

    def fingerprint(self, num_read: int) -> dict[str, Any]:
        entries = [self._entry(i) for i in range(len(self.files))]
        for entry, path in zip(entries[:num_read], self._paths, strict=False):
            entry["sha256"] = sha256_file(path)
        return {"kind": "local", "files": entries}

    def matches(self, recorded: Mapping[str, Any]) -> bool:
        files = recorded.get("files", [])
        if recorded.get("kind") != "local" or len(files) != len(self.files):
            return False
        return all(self._same(i, entry) for i, entry in enumerate(files))

    def _entry(self, index: int) -> dict[str, Any]:
        file, stat = self.files[index], self._stats[index]
        return {"name": file.name, "size": file.size, "mtime_ns": stat.st_mtime_ns}

    def _same(self, index: int, entry: Mapping[str, Any]) -> bool:
        now = self._entry(index)
        if (now["name"], now["size"]) != (entry["name"], entry["size"]):
            return False
        unread = "sha256" not in entry
        return unread or now["mtime_ns"] == entry["mtime_ns"] or sha256_file(self._paths[index]) == entry["sha256"]
