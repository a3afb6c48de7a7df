"""Training tokens to shard files: each complete under its final name, or growing under `.partial`."""

import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from compress.base.disk import fsync_path, sha256_file
from compress.data.store.encode import Ids
from compress.data.store.index import files_of
from compress.data.store.layout import TextRows
from compress.data.store.marks import ids_of, marks_of
from compress.model.framing import row_starts, with_starts

SHARD_TOKENS = 2**24
_IDS, _MARKS, _PLACES, _IMAGES = "bin", "marks", "places", "images"
_PLACE = np.dtype("<u8")


class ShardWriter:
    """Packs a stream of tokens into shards of whole rows, `row_start` before each, and can go on from a recorded point.

    `shards` lists what is complete: {"file", "rows", "sha256"}, and with `marks`, which the tokens then carry (see
    `compress.data.store.marks`), "marks": {"file", "sha256"}. With `images` each row has a record (see
    `compress.data.store.pictures`): "images" is one after the other, "places" where each ends.

    Raises:
        ValueError: the files are not those that `state` was recorded with.
    """

    def __init__(
        self,
        folder: Path,
        dtype: Any,
        seq_len: int,
        state: dict[str, Any] | None,
        row_start: tuple[int, ...] = (),
        *,
        marks: bool = False,
        images: bool = False,
    ) -> None:
        self._folder, self._seq_len, self._row_start = folder, seq_len, row_start
        self._dtypes = {_IDS: np.dtype(dtype)} | ({_MARKS: np.dtype("u1")} if marks else {})
        self._kinds = (*self._dtypes, *((_PLACES, _IMAGES) if images else ()))
        self._shard_tokens = max(1, SHARD_TOKENS // seq_len) * seq_len
        self.shards: list[dict[str, Any]] = list(state["shards"]) if state else []
        self._open_tokens: int = state["open_tokens"] if state else 0
        self._files = self._continue()

    @property
    def tokens(self) -> int:
        """Tokens appended so far."""
        return len(self.shards) * self._shard_tokens + self._open_tokens

    @property
    def filled(self) -> int:
        """Tokens of the row that is not full."""
        return self._open_tokens % self._seq_len

    def append(self, tokens: Ids, limit: int | None = None, record: bytes | None = None) -> None:
        """Add tokens [n] to the stream, up to `limit` altogether; with a `record` they are the row that it is of."""
        starts = row_starts(tokens, self.filled, self._seq_len, self._row_start)
        tokens = with_starts(tokens, starts, self._row_start)[: None if limit is None else max(0, limit - self.tokens)]
        if record is not None and len(tokens):
            assert len(tokens) == self._seq_len
            self._files[_IMAGES].write(record)
            self._files[_PLACES].write(np.array(self._files[_IMAGES].tell(), _PLACE).tobytes())
        while len(tokens):
            room = self._shard_tokens - self._open_tokens
            self._write(tokens[:room])
            tokens = tokens[room:]
            if self._open_tokens == self._shard_tokens:
                self._complete(self._open_tokens)
                self._files = self._continue()

    def _write(self, tokens: Ids) -> None:
        if _MARKS in self._files:
            self._files[_MARKS].write(marks_of(tokens).tobytes())
            tokens = ids_of(tokens)
        self._files[_IDS].write(tokens.astype(self._dtypes[_IDS]).tobytes())
        self._open_tokens += len(tokens)

    def state(self) -> dict[str, Any]:
        """Force everything to the disk and return what `__init__` needs to go on from here."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        return {"shards": list(self.shards), "open_tokens": self._open_tokens}

    def finish(self) -> int:
        """Complete the last shard, without the tokens that fill no row; return the number of rows."""
        rows, rest = divmod(self._open_tokens, self._seq_len)
        if rows:
            self._complete(self._open_tokens - rest)
        else:
            self.close()
            for kind in self._kinds:
                self._path(kind, partial=True).unlink()
        return sum(shard["rows"] for shard in self.shards)

    def close(self) -> None:
        """Close the growing files; nothing is completed."""
        for file in self._files.values():
            file.close()

    def _continue(self) -> dict[str, BinaryIO]:
        """Open the growing files, cut back to the recorded length; remove what came after them."""
        known = [file["file"] for shard in self.shards for file in files_of(shard)]
        growing = {self._path(kind, partial=partial).name for kind in self._kinds for partial in (True, False)}
        for found in self._folder.glob("train-*"):
            if found.name not in {*known, *growing}:
                found.unlink()
        return {kind: self._open(kind) for kind in self._kinds}

    def _open(self, kind: str) -> BinaryIO:
        """It may have been completed after the state was recorded: then it starts growing again."""
        path, completed = self._path(kind, partial=True), self._path(kind, partial=False)
        if self._open_tokens and completed.exists():
            os.replace(completed, path)
        completed.unlink(missing_ok=True)
        length = self._length(kind, self._open_tokens)
        if length and (not path.exists() or path.stat().st_size < length):
            raise ValueError(f"{path} is shorter than recorded")
        file = path.open("r+b" if self._open_tokens else "wb")
        file.truncate(length)
        file.seek(0, os.SEEK_END)
        return file

    def _complete(self, tokens: int) -> None:
        rows, done = tokens // self._seq_len, {}
        for kind, file in self._files.items():
            file.truncate(self._length(kind, tokens))
            file.flush()
            os.fsync(file.fileno())
            file.close()
            path = self._path(kind, partial=False)
            os.replace(self._path(kind, partial=True), path)
            done[kind] = path
        fsync_path(self._folder)
        self.shards.append(_entry(done, rows))
        self._open_tokens = 0

    def _length(self, kind: str, tokens: int) -> int:
        """Bytes that a growing file of a kind has after so many tokens. Where records end is opened before they are."""
        if kind in self._dtypes:
            return tokens * int(self._dtypes[kind].itemsize)
        rows = tokens // self._seq_len
        if kind == _PLACES or not rows:
            return rows * _PLACE.itemsize
        for partial in (True, False):
            if (path := self._path(_PLACES, partial=partial)).exists():
                ends: list[int] = np.fromfile(path, _PLACE, count=rows).tolist()
                return ends[-1]
        raise ValueError(f"{self._path(_PLACES, partial=True)} is missing")

    def _path(self, kind: str, *, partial: bool) -> Path:
        return self._folder / f"train-{len(self.shards):05d}.{kind}{'.partial' if partial else ''}"


def write_rows(folder: Path, name: str, rows: TextRows, dtype: Any) -> dict[str, Any]:
    """Write a small shard at once and return its entry, as in `ShardWriter.shards`."""
    contents = {_IDS: rows.ids.astype(dtype)} | ({} if rows.marks is None else {_MARKS: rows.marks})
    if rows.records is not None:
        contents[_PLACES] = np.cumsum([len(record) for record in rows.records], dtype=_PLACE)
        contents[_IMAGES] = np.frombuffer(b"".join(rows.records), np.uint8)
    paths = {kind: folder / f"{name}.{kind}" for kind in contents}
    for kind, content in contents.items():
        np.ascontiguousarray(content).tofile(paths[kind])
        fsync_path(paths[kind])
    return _entry(paths, len(rows.ids))


def _entry(paths: dict[str, Path], rows: int) -> dict[str, Any]:
    """What the index says of the files of a shard."""
    hashes = {kind: {"file": path.name, "sha256": sha256_file(path)} for kind, path in paths.items()}
    ids = {"file": hashes[_IDS]["file"], "rows": rows, "sha256": hashes[_IDS]["sha256"]}
    return ids | {kind: found for kind, found in hashes.items() if kind != _IDS}
