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
from compress.base.progress import progress_bar
from compress.data.config import DataConfig
from compress.data.sources.hub import HubSource
from compress.data.sources.instructions import Asked
from compress.data.sources.json_files import Beginning, beginning
from compress.data.sources.readers import FORMATS, DataFile, Layout, layout_of
from compress.data.sources.unread import Unread

_BAR_FROM_BYTES = 1 << 30
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


class Source(Protocol):
    """An ordered list of data files that can be opened."""

    @property
    def files(self) -> list[DataFile]:
        """The data files, in reading order."""

    def connect(self) -> None:
        """Find out what the files are; comes before everything but `matches` and may raise what the network raises."""

    @property
    def unread(self) -> Unread:
        """What lies beside the data files, or was named with them, and is not read."""

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


def asked_of(config: DataConfig) -> Asked:
    """What the rows of a config's source are to be read as."""
    return Asked(config.form, config.text_column)


def find_source(config: DataConfig, commit: str | None = None) -> Source:
    """The source a config names; a local path wins over a hub dataset of the same name.

    `commit` pins a hub dataset to an earlier state of it.

    Raises:
        UsageError: options that do not go with the source, or files of several formats.
        InputError: no such file or dataset, or nothing in it that can be read.
    """
    name = config.datasets[0]
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
    if path.is_file():
        _require_rows(path)
        return LocalSource(path.parent, [path], {})
    if path.is_dir():
        base, met = path, [p for p in sorted(path.rglob("*")) if p.is_file() and not _hidden(p.relative_to(path))]
    elif path.exists():
        raise InputError(f"{path} is neither a file nor a folder: give text in files of {FORMATS}.")
    else:
        base, met = _matches(path)
    why_not = {p: _why_not(p, asked_of(config)) for p in met}
    found = [p for p, why in why_not.items() if why is None]
    unread = {p.relative_to(base).as_posix(): why for p, why in why_not.items() if why is not None}
    if not found:
        raise InputError(f"{config.dataset} has no data files: {FORMATS}.{Unread(unread).sentence(' ')}")
    formats = sorted({_written_as(p) for p in found})
    if len(formats) > 1:
        raise UsageError(
            f"{config.dataset} has files of several formats ({', '.join(formats)}); name the ones you mean with a glob "
            f"like {path if path.is_dir() else base}/*.{formats[0]}."
        )
    return LocalSource(base, found, unread)


def _matches(pattern: Path) -> tuple[Path, list[Path]]:
    """What a glob names, and the folder all of it lies in."""
    recursive = "**" in pattern.parts
    found = [Path(p) for p in sorted(glob.glob(str(pattern), recursive=True))]
    met = [p for p in found if p.is_file() or (p.is_dir() and not recursive)]
    base = Path(str(pattern)[: re.search(r"[*?[]", str(pattern)).start()]).parent  # type: ignore[union-attr]
    return base if all(p.is_relative_to(base) for p in met) else Path(), met


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _why_not(path: Path, asked: Asked) -> str | None:
    """Why a path that was met in a folder or by a glob is no data file; None where it is one."""
    layout = layout_of(path.name)
    if path.is_dir():
        return "a folder"
    if layout is None:
        return ""
    found = _beginning(path, layout) if layout.format == "json" else None
    return found.lacks(asked) if found else None


def _require_rows(path: Path) -> None:
    """Refuse a file that its user named and that cannot hold rows of text.

    Raises:
        InputError: its name has none of the known endings, or it is JSON of another kind.
    """
    layout = layout_of(path.name)
    if layout is None:
        raise InputError(f"{path} has none of the known endings: {FORMATS}.")
    found = _beginning(path, layout) if layout.format == "json" else None
    if found and (fault := found.fault()):
        raise InputError(f"{path} {fault}: write one object with the text a line, or an array of such objects.")


def _beginning(path: Path, layout: Layout) -> Beginning | None:
    """What a .json file begins with; None where that cannot be read, which is said when it is read for its rows."""
    try:
        with path.open("rb") as file:
            return beginning(file, layout.compression)
    except Exception:  # whatever the system, or the decoder of a damaged file, raises
        return None


def _written_as(path: Path) -> str:
    """The format of a data file, as which files can be read together."""
    name = cast(Layout, layout_of(path.name)).format
    return "jsonl" if name == "json" else name


class LocalSource:
    """Files on this machine, identified by SHA-256, which is trusted while size and change time stay the same."""

    def __init__(self, base: Path, paths: list[Path], unread: Mapping[str, str]) -> None:
        self._paths = paths
        self.unread = Unread(unread)
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
        size = sum(file.size for file in self.files[:num_read])
        with progress_bar("SHA-256 of the text", size, unit="bytes", visible=size >= _BAR_FROM_BYTES) as bar:
            for entry, path in zip(entries[:num_read], self._paths, strict=False):
                entry["sha256"] = sha256_file(path)
                bar.advance(entry["size"])
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
