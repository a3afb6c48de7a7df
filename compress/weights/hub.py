"""A teacher on the hub of which only the bytes that a student keeps are read.

A safetensors file's header says where each tensor lies, and the hub serves ranges of bytes: so the headers are
fetched, then the kept tensors. On this machine stand files of the right size with the headers and nothing else (sparse:
they take no room), in which all that asks for names and shapes, the strict load among it, finds what it needs.
"""

import shutil
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from compress.base.errors import InputError, UsageError
from compress.model.files import (
    SMALL_FILES,
    copy_side_files,
    download,
    hub_errors,
    local_folder,
    model_fingerprint,
    resolve_model,
    shard_names,
)

_LONGEST_HEADER = 100_000_000  # what safetensors itself allows


class _Shard(NamedTuple):
    num_bytes: int
    etag: str


class HubTeacher:
    """The model, at one commit, and its bytes, which are counted. `folder` has its small files and the headers."""

    readers = 8

    def __init__(self, name: str, snapshot: Path, folder: Path) -> None:
        from huggingface_hub import HfFileSystem

        self._files = HfFileSystem()
        self.name, self.folder = name, folder
        self.commit = snapshot.name
        self.downloaded_bytes = 0
        """Bytes of weight files, headers among them, that were asked for and came."""
        self._lock = threading.Lock()
        copy_side_files(snapshot, folder)
        for path in snapshot.glob("*.json"):
            shutil.copyfile(path, folder / path.name)
        names = shard_names(folder)
        with hub_errors(name), ThreadPoolExecutor(self.readers) as pool:
            self._shards = dict(zip(names, pool.map(self._find, names), strict=True))
            list(pool.map(self._lay_out, names))

    @property
    def num_bytes(self) -> int:
        """Bytes of all weight files."""
        return sum(shard.num_bytes for shard in self._shards.values())

    def fingerprint(self) -> dict[str, str]:
        """As `model_fingerprint`; the hub names a weight file by its SHA-256."""
        found = model_fingerprint(self.folder, weights=False)
        return dict(sorted({**found, **{name: shard.etag for name, shard in self._shards.items()}}.items()))

    def to_dict(self) -> dict[str, Any]:
        """What prune.json says of it."""
        return {"commit": self.commit, "downloaded_bytes": self.downloaded_bytes, "of_bytes": self.num_bytes}

    def read(self, path: Path, start: int, into: memoryview) -> int:
        """Fill `into` with a file's bytes from `start` on. The hub's client tries again, later and later, where a
        connection breaks or the hub is busy.

        Raises:
            InputError: the hub does not give them after several tries, or gives files only as a whole.
        """
        return self._read(path.name, start, into)

    def _find(self, name: str) -> _Shard:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        url = hf_hub_url(self.name, name, revision=self.commit)
        found = get_hf_file_metadata(url)
        if found.size is None or found.etag is None:
            raise InputError(f"The hub does not say how large {name} of {self.name} is; download the model whole.")
        return _Shard(found.size, found.etag)

    def _lay_out(self, name: str) -> None:
        shard = self._shards[name]
        length = bytearray(8)
        self._read(name, 0, memoryview(length))
        size = int.from_bytes(length, "little")
        if size > min(_LONGEST_HEADER, shard.num_bytes - 8):
            raise InputError(f"{name} of {self.name} is not a safetensors file: its header would have {size} bytes.")
        header = bytearray(size)
        self._read(name, 8, memoryview(header))
        with (self.folder / name).open("wb") as file:
            file.write(length + header)
            file.truncate(shard.num_bytes)

    def _read(self, name: str, start: int, into: memoryview) -> int:
        place = f"{self.name}@{self.commit}/{name}"
        try:
            with hub_errors(self.name):
                data = self._files.cat_file(place, start, start + len(into), cache_type="none")
        except InputError:
            raise
        except Exception as error:  # which ones is the HTTP library's business, and that the hub client's
            raise InputError(
                f"{self.name}: the connection to the hub broke again and again ({error}). Check the network and run "
                "the command again."
            ) from error
        if len(data) > len(into):
            raise InputError(
                f"The hub gives {name} of {self.name} only as a whole: read all of the teacher (`stream: false`)."
            )
        into[: len(data)] = data
        with self._lock:
            self.downloaded_bytes += len(data)
        return len(data)


def streams(name: str, asked: bool | None, *, check: bool, needed_by: str | None) -> bool:
    """Whether to read only parts of the teacher `name`; `asked` is what the user said, `needed_by` what reads it all.

    Raises:
        UsageError: it was asked for, of a local folder or where the whole teacher is needed.
    """
    local = local_folder(name) is not None
    if asked and local:
        raise UsageError(f"--stream reads parts of a model on the hub; {name} is a local folder. Leave it out.")
    if asked and needed_by:
        raise UsageError(f"--stream reads only what the student keeps, and {needed_by} needs all of {name}: drop one.")
    if asked is None:
        return not (local or check or needed_by or _is_cached(name))
    return asked


@contextmanager
def open_teacher(name: str, *, stream: bool) -> Iterator[tuple[Path, HubTeacher | None]]:
    """Folder of the model `name`, and where its weights are when the folder has their headers only (`stream`).

    Raises:
        InputError: no such model, no safetensors in it, an index that names files outside it, or the hub refuses.
    """
    if not stream:
        yield resolve_model(name), None
        return
    snapshot = download(name, None, SMALL_FILES)
    if not (snapshot / "config.json").is_file():
        raise InputError(f"{name} is not a model: it has no config.json.")
    with tempfile.TemporaryDirectory(prefix="compress-") as folder:
        teacher = HubTeacher(name, snapshot, Path(folder))
        yield teacher.folder, teacher


def _is_cached(name: str) -> bool:
    """Whether the hub's local cache has the weights of the model, as far as its default branch is known here."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    if not isinstance(config, str):
        return False
    snapshot = Path(config).parent
    return all((snapshot / shard).exists() for shard in shard_names(snapshot))
