"""Training tokens to shard files: each complete under its final name, or growing under `.partial`."""

import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from compress.base.disk import fsync_path, sha256_file
from compress.data.store.encode import Ids
from compress.model.framing import row_starts, with_starts

SHARD_TOKENS = 2**24


class ShardWriter:
    """Packs a stream of tokens into shards of whole rows, `row_start` before each, and can go on from a recorded point.

    `shards` lists what is complete: {"file", "rows", "sha256"}.

    Raises:
        ValueError: the files are not those that `state` was recorded with.
    """

    def __init__(
        self, folder: Path, dtype: Any, seq_len: int, state: dict[str, Any] | None, row_start: tuple[int, ...] = ()
    ) -> None:
        self._folder, self._dtype, self._seq_len, self._row_start = folder, dtype, seq_len, row_start
        self._shard_tokens = max(1, SHARD_TOKENS // seq_len) * seq_len
        self.shards: list[dict[str, Any]] = list(state["shards"]) if state else []
        self._open_tokens: int = state["open_tokens"] if state else 0
        self._file = self._continue()

    @property
    def tokens(self) -> int:
        """Tokens appended so far."""
        return len(self.shards) * self._shard_tokens + self._open_tokens

    def append(self, ids: Ids, limit: int | None = None) -> None:
        """Add ids [n] to the stream, up to `limit` tokens altogether."""
        starts = row_starts(ids, self._open_tokens % self._seq_len, self._seq_len, self._row_start)
        ids = with_starts(ids, starts, self._row_start)[: None if limit is None else max(0, limit - self.tokens)]
        while len(ids):
            room = self._shard_tokens - self._open_tokens
            self._file.write(ids[:room].astype(self._dtype).tobytes())
            self._open_tokens += len(ids[:room])
            ids = ids[room:]
            if self._open_tokens == self._shard_tokens:
                self._complete(self._open_tokens)
                self._file = self._continue()

    def state(self) -> dict[str, Any]:
        """Force everything to the disk and return what `__init__` needs to go on from here."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"shards": list(self.shards), "open_tokens": self._open_tokens}

    def finish(self) -> int:
        """Complete the last shard, without the tokens that fill no row; return the number of rows."""
        rows, rest = divmod(self._open_tokens, self._seq_len)
        if rows:
            self._complete(self._open_tokens - rest)
        else:
            self.close()
            self._path(partial=True).unlink()
        return sum(shard["rows"] for shard in self.shards)

    def close(self) -> None:
        """Close the growing file; nothing is completed."""
        self._file.close()

    def _continue(self) -> BinaryIO:
        """Open the growing shard, cut back to the recorded length; remove what came after it.

        It may have been completed after the state was recorded: then it starts growing again.
        """
        path, completed = self._path(partial=True), self._path(partial=False)
        if self._open_tokens and completed.exists():
            os.replace(completed, path)
        length = self._open_tokens * self._dtype.itemsize
        if length and (not path.exists() or path.stat().st_size < length):
            raise ValueError(f"{path} is shorter than recorded")
        expected = {shard["file"] for shard in self.shards} | {path.name}
        for found in self._folder.glob("train-*"):
            if found.name not in expected:
                found.unlink()
        file = path.open("r+b" if self._open_tokens else "wb")
        file.truncate(length)
        file.seek(0, os.SEEK_END)
        return file

    def _complete(self, tokens: int) -> None:
        self._file.truncate(tokens * self._dtype.itemsize)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        path = self._path(partial=False)
        os.replace(self._path(partial=True), path)
        fsync_path(self._folder)
        rows = tokens // self._seq_len
        self.shards.append({"file": path.name, "rows": rows, "sha256": sha256_file(path)})
        self._open_tokens = 0

    def _path(self, *, partial: bool) -> Path:
        return self._folder / f"train-{len(self.shards):05d}.bin{'.partial' if partial else ''}"


def write_rows(folder: Path, name: str, rows: Ids, dtype: Any) -> dict[str, Any]:
    """Write a small shard at once and return its entry, as in `ShardWriter.shards`."""
    path = folder / name
    np.ascontiguousarray(rows).astype(dtype).tofile(path)
    fsync_path(path)
    return {"file": name, "rows": len(rows), "sha256": sha256_file(path)}
