"""Training tokens to shard files: each complete under its final name, or growing under `.partial`."""

import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from compress.base.disk import fsync_path, sha256_file
from compress.data.store.encode import Ids
from compress.data.store.layout import TextRows
from compress.data.store.marks import ids_of, marks_of
from compress.model.framing import row_starts, with_starts

SHARD_TOKENS = 2**24
_IDS, _MARKS = "bin", "marks"


class ShardWriter:
    """Packs a stream of tokens into shards of whole rows, `row_start` before each, and can go on from a recorded point.

    `shards` lists what is complete: {"file", "rows", "sha256"}, and with `marks`, which the tokens then carry (see
    `compress.data.store.marks`), "marks": {"file", "sha256"}.

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
    ) -> None:
        self._folder, self._seq_len, self._row_start = folder, seq_len, row_start
        self._dtypes = {_IDS: np.dtype(dtype)} | ({_MARKS: np.dtype("u1")} if marks else {})
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

    def append(self, tokens: Ids, limit: int | None = None) -> None:
        """Add tokens [n] to the stream, up to `limit` altogether."""
        starts = row_starts(tokens, self.filled, self._seq_len, self._row_start)
        tokens = with_starts(tokens, starts, self._row_start)[: None if limit is None else max(0, limit - self.tokens)]
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
            for kind in self._dtypes:
                self._path(kind, partial=True).unlink()
        return sum(shard["rows"] for shard in self.shards)

    def close(self) -> None:
        """Close the growing files; nothing is completed."""
        for file in self._files.values():
            file.close()

    def _continue(self) -> dict[str, BinaryIO]:
        """Open the growing files, cut back to the recorded length; remove what came after them."""
        known = [name for shard in self.shards for name in (shard["file"], shard.get("marks", {}).get("file"))]
        growing = {self._path(kind, partial=partial).name for kind in self._dtypes for partial in (True, False)}
        for found in self._folder.glob("train-*"):
            if found.name not in {*known, *growing}:
                found.unlink()
        return {kind: self._open(kind) for kind in self._dtypes}

    def _open(self, kind: str) -> BinaryIO:
        """It may have been completed after the state was recorded: then it starts growing again."""
        path, completed = self._path(kind, partial=True), self._path(kind, partial=False)
        if self._open_tokens and completed.exists():
            os.replace(completed, path)
        completed.unlink(missing_ok=True)
        length = self._open_tokens * self._dtypes[kind].itemsize
        if length and (not path.exists() or path.stat().st_size < length):
            raise ValueError(f"{path} is shorter than recorded")
        file = path.open("r+b" if self._open_tokens else "wb")
        file.truncate(length)
        file.seek(0, os.SEEK_END)
        return file

    def _complete(self, tokens: int) -> None:
        rows, done = tokens // self._seq_len, {}
        for kind, file in self._files.items():
            file.truncate(tokens * self._dtypes[kind].itemsize)
            file.flush()
            os.fsync(file.fileno())
            file.close()
            path = self._path(kind, partial=False)
            os.replace(self._path(kind, partial=True), path)
            done[kind] = path
        fsync_path(self._folder)
        self.shards.append(_entry(done, rows))
        self._open_tokens = 0

    def _path(self, kind: str, *, partial: bool) -> Path:
        return self._folder / f"train-{len(self.shards):05d}.{kind}{'.partial' if partial else ''}"


def write_rows(folder: Path, name: str, rows: TextRows, dtype: Any) -> dict[str, Any]:
    """Write a small shard at once and return its entry, as in `ShardWriter.shards`."""
    contents = {_IDS: rows.ids.astype(dtype)} | ({} if rows.marks is None else {_MARKS: rows.marks})
    paths = {kind: folder / f"{name}.{kind}" for kind in contents}
    for kind, content in contents.items():
        np.ascontiguousarray(content).tofile(paths[kind])
        fsync_path(paths[kind])
    return _entry(paths, len(rows.ids))


def _entry(paths: dict[str, Path], rows: int) -> dict[str, Any]:
    """What the index says of the files of a shard."""
    hashes = {kind: {"file": path.name, "sha256": sha256_file(path)} for kind, path in paths.items()}
    ids = {"file": hashes[_IDS]["file"], "rows": rows, "sha256": hashes[_IDS]["sha256"]}
    return ids | ({_MARKS: hashes[_MARKS]} if _MARKS in hashes else {})
