"""A finished token store: rows of token ids read through memory maps, in a seeded order with one integer of state."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ValidationError

from compress.base.disk import read_json, sha256_file
from compress.base.errors import InputError, UsageError
from compress.data.store.index import FORMAT, INDEX, Index, fingerprint_of, hashes_of
from compress.data.store.marks import Marks, read_marks
from compress.data.store.permutation import permute, permute_epochs
from compress.model.framing import Framing

_BLOCK_TOKENS = 1 << 20
_DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


T = TypeVar("T", bound=np.generic)


class TokenStore:
    """Training rows [num_rows, seq_len] and held-out rows [num_heldout, seq_len] of token ids, with marks where they
    are of conversations.

    `index` is index.json as it is on disk.
    """

    def __init__(self, path: Path, index: dict[str, Any]) -> None:
        self.path, self.index = path, index
        self.seq_len: int = index["seq_len"]
        self.vocab_size: int = index["vocab_size"]
        self.eos_id: int = index["eos_id"]
        self.tokenizer_sha256: str = index["tokenizer_sha256"]
        self.fingerprint: str = index["fingerprint"]
        framing = index.get("framing")
        self.framing = None if framing is None else Framing(tuple(framing["documents"]), tuple(framing["rows"]))
        """How its text is framed; None in a store of an earlier version, which knew EOS alone."""
        self.marked: bool = index.get("instructions") is not None
        """Whether its rows are of conversations, whose tokens have marks."""
        self.apart: bool = self.marked and index["instructions"]["apart"]
        """Whether marks keep the conversations of a row apart."""
        self.pictured: bool = self.marked and index["instructions"].get("form") == "images"
        """Whether each row is a conversation about images, whose records it has."""
        self.num_rows: int = index["train"]["rows"]
        self.num_heldout: int = index["heldout"]["rows"]
        self.sources: tuple[str, ...] = tuple(source["name"] for source in index.get("sources", ()))
        """What the sources of a blend are called; empty where there is one."""
        self.dtype = _DTYPES[index["dtype"]]
        shards = index["train"]["shards"]
        self._ends = np.cumsum([shard["rows"] for shard in shards])

    @classmethod
    def open(cls, path: Path | str) -> "TokenStore":
        """Open a store and check its index and the sizes of its files (their content: `verify`).

        Raises:
            InputError: no store, one of another format, or a file that is missing or has the wrong size.
        """
        folder = Path(path)
        if not (folder / INDEX).is_file():
            raise InputError(f"{folder} is no token store: it has no index.json. Prepare the data first.")
        index = read_json(folder / INDEX)
        if not isinstance(index, dict) or index.get("format") != FORMAT:
            raise InputError(f"{folder / INDEX} is not the index of a token store of the format {FORMAT}.")
        try:
            Index.model_validate(index)
            intact = index["fingerprint"] == fingerprint_of(index)
            store = cls(folder, index)
            intact = intact and store.num_rows == sum(shard["rows"] for shard in index["train"]["shards"])
            intact = intact and all(("marks" in shard) == store.marked for shard in store.shards())
            intact = intact and all(("images" in shard) == store.pictured for shard in store.shards())
            intact = intact and store._knows_sources()
        except ValidationError as error:
            fault = error.errors()[0]
            field = ".".join(map(str, fault["loc"]))
            raise InputError(
                f"{folder / INDEX} is damaged ({field}: {fault['msg']}). Prepare the data again."
            ) from error
        if not intact:
            raise InputError(f"{folder / INDEX} was changed after it was written. Prepare the data again.")
        store._check_sizes()
        return store

    def verify(self) -> None:
        """Compare the SHA-256 of every file with the index.

        Raises:
            InputError: a file's content changed; the message names it.
        """
        for name, sha256 in hashes_of(self.index).items():
            if sha256_file(self.path / name) != sha256:
                raise InputError(f"{self.path / name} is not as it was written. Prepare the data again.")

    def rows(self, indices: ArrayLike) -> NDArray[np.int64]:
        """Training rows [n, seq_len] int64 at `indices` [n], each in 0..num_rows-1.

        Raises:
            IndexError: an index out of range.
        """
        return self._pick(self._maps, indices, np.int64)

    def marks(self, indices: ArrayLike) -> Marks | None:
        """Marks [n, seq_len] of the training rows at `indices`; None where rows are of text."""
        return read_marks(self._pick(self._mark_maps, indices, np.uint8)) if self.marked else None

    def records(self, indices: ArrayLike) -> list[bytes]:
        """What the pixels of the training rows at `indices` are made of; rows of a store that is `pictured`."""
        wanted = np.asarray(indices, dtype=np.int64)
        shards = np.searchsorted(self._ends, wanted, side="right")
        firsts = np.concatenate([[0], self._ends])[shards]
        entries = self.index["train"]["shards"]
        return [
            self._record(entries[shard], int(row - first))
            for shard, row, first in zip(shards.tolist(), wanted, firsts, strict=True)
        ]

    def heldout_records(self, n: int | None = None) -> list[bytes]:
        """The same of the first `n` held-out rows."""
        return [self._record(self.index["heldout"], row) for row in range(self._check_heldout(n))]

    def _record(self, shard: Mapping[str, Any], row: int) -> bytes:
        places = np.memmap(self.path / shard["places"]["file"], dtype="<u8", mode="r", shape=(shard["rows"],))
        start = int(places[row - 1]) if row else 0
        with (self.path / shard["images"]["file"]).open("rb") as file:
            file.seek(start)
            record: bytes = file.read(int(places[row]) - start)
        return record

    def _pick(self, maps: list[NDArray[Any]], indices: ArrayLike, dtype: type[T]) -> NDArray[T]:
        wanted = np.asarray(indices, dtype=np.int64)
        if ((wanted < 0) | (wanted >= self.num_rows)).any():
            raise IndexError(f"row indices must be within 0..{self.num_rows - 1}")
        found = np.empty((len(wanted), self.seq_len), dtype=dtype)
        shards = np.searchsorted(self._ends, wanted, side="right")
        for shard in np.unique(shards):
            here = shards == shard
            first = self._ends[shard - 1] if shard else 0
            found[here] = maps[shard][wanted[here] - first]
        return found

    def heldout(self, n: int | None = None) -> NDArray[np.int64]:
        """The first `n` held-out rows [n, seq_len] int64; all of them by default.

        Raises:
            UsageError: the store has fewer.
        """
        n = self._check_heldout(n)
        if n == 0:
            return np.empty((0, self.seq_len), dtype=np.int64)
        return self._map(self.index["heldout"])[:n].astype(np.int64)

    def heldout_marks(self, n: int | None = None) -> Marks | None:
        """Marks [n, seq_len] of the first `n` held-out rows; None where rows are of text."""
        n = self._check_heldout(n)
        if not self.marked:
            return None
        if n == 0:
            return read_marks(np.empty((0, self.seq_len), dtype=np.uint8))
        return read_marks(self._mark_map(self.index["heldout"])[:n])

    def heldout_documents(self, n: int | None = None) -> NDArray[np.int64]:
        """The number [n, seq_len] int64 of the document that each token of the first `n` held-out rows is from.

        Raises:
            UsageError: the store has fewer rows.
        """
        n = self._check_heldout(n)
        parts = self.index["heldout"].get("parts")
        if parts is None:  # the documents follow each other, EOS after each
            ends = self.heldout(n).ravel() == self.eos_id
            found: NDArray[np.int64] = (np.cumsum(ends) - ends).reshape(n, self.seq_len)
            return found
        places, documents = np.array(parts, dtype=np.int64).reshape(-1, 2).T
        lengths = np.diff(places, append=self.num_heldout * self.seq_len)
        return np.repeat(documents, lengths)[: n * self.seq_len].reshape(n, self.seq_len)

    def sources_of(self, indices: ArrayLike) -> NDArray[np.int64]:
        """Numbers [n] of the sources in `sources` that the training rows at `indices` [n] are from."""
        ends = np.cumsum([source["rows"] for source in self.index["sources"]])
        return np.searchsorted(ends, np.asarray(indices, dtype=np.int64), side="right")

    def heldout_sources(self, n: int | None = None) -> NDArray[np.int64]:
        """Numbers [n] of the sources in `sources` that the first `n` held-out rows are from.

        Raises:
            UsageError: the store has fewer rows.
        """
        return np.asarray(self.index["heldout"].get("sources", ())[: self._check_heldout(n)], dtype=np.int64)

    def heldout_bytes(self, n: int | None = None) -> int:
        """UTF-8 bytes of the text that tokens 1..seq_len-1 of the first `n` held-out rows stand for; of conversations,
        those to be learned.

        Those are the tokens a causal model is scored on: bits per byte = sum of their losses in nats / (ln 2 * bytes).

        Raises:
            UsageError: the store has fewer rows.
        """
        return int(sum(self.index["heldout"]["bytes"][: self._check_heldout(n)]))

    def largest_id(self) -> int:
        """The largest token id of all rows, training and held-out; all of them are read."""
        return max(int(self._map(shard).max()) for shard in self.shards())

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """The order of the training rows in an epoch (0-based), a permutation [num_rows] int64; see `permutation`."""
        return permute(np.arange(self.num_rows), self.num_rows, seed=seed, epoch=epoch)

    def row_ids(self, position: int, count: int, *, seed: int, epochs: int = 1) -> NDArray[np.int64]:
        """Which rows [count] int64 a run reads after it has read `position` rows, over all its epochs.

        `position` is the whole state of the data: row number k of a run is entry k mod num_rows of the order of
        epoch k div num_rows, whatever the batch sizes and the number of processes.

        Raises:
            UsageError: the run would go on after `epochs` epochs, and so repeat data it was not told to repeat.
        """
        stop, available = position + count, self.num_rows * epochs
        if position < 0 or count < 0 or stop > available:
            raise UsageError(
                f"Rows {position} to {stop} of a run were asked for and {self.path} has {self.num_rows} rows, "
                f"{available} in epochs = {epochs}. Prepare more tokens, train on fewer, or allow more epochs."
            )
        return permute_epochs(np.arange(position, stop, dtype=np.int64), self.num_rows, seed=seed)

    def batch(self, position: int, count: int, seed: int, epochs: int = 1) -> NDArray[np.int64]:
        """The rows [count, seq_len] int64 themselves; arguments and errors as in `row_ids`."""
        return self.rows(self.row_ids(position, count, seed=seed, epochs=epochs))

    @cached_property
    def _maps(self) -> list[NDArray[Any]]:
        return [self._map(shard) for shard in self.index["train"]["shards"]]

    @cached_property
    def _mark_maps(self) -> list[NDArray[Any]]:
        return [self._mark_map(shard) for shard in self.index["train"]["shards"]]

    def _mark_map(self, shard: Mapping[str, Any]) -> NDArray[Any]:
        shape = (shard["rows"], self.seq_len)
        mapped: NDArray[Any] = np.memmap(self.path / shard["marks"]["file"], dtype=np.uint8, mode="r", shape=shape)
        return mapped

    def _map(self, shard: Mapping[str, Any]) -> NDArray[Any]:
        shape = (shard["rows"], self.seq_len)
        mapped: NDArray[Any] = np.memmap(self.path / shard["file"], dtype=self.dtype, mode="r", shape=shape)
        return mapped

    def blocks(self, shard: Mapping[str, Any]) -> Iterator[NDArray[Any]]:
        """All rows [n, seq_len] of one of `shards`, some thousands at once."""
        rows = self._map(shard)
        step = max(1, _BLOCK_TOKENS // self.seq_len)
        return (rows[start : start + step] for start in range(0, len(rows), step))

    def shards(self) -> list[dict[str, Any]]:
        """The index's entry of each file of ids: {"file", "rows", "sha256"}, and "marks" where it has them."""
        return [*self.index["train"]["shards"], *([self.index["heldout"]] if self.num_heldout else [])]

    def _knows_sources(self) -> bool:
        """Whether the sources of a blend are those of its rows."""
        sources, tags = self.index.get("sources"), self.index["heldout"].get("sources", [])
        if sources is None:
            return not tags
        counts = [tags.count(number) for number in range(len(sources))]
        rows = dict.fromkeys((f"source-{number}" for number in range(len(sources))), 0)
        for shard in self.index["train"]["shards"]:
            place = shard["file"].partition("/")[0]
            rows[place] = rows.get(place, 0) + shard["rows"]
        held = counts == [source["heldout_rows"] for source in sources] and len(tags) == self.num_heldout
        return held and list(rows.values()) == [source["rows"] for source in sources]

    def _check_sizes(self) -> None:
        for shard in self.shards():
            tokens = shard["rows"] * self.seq_len
            self._check_size(shard["file"], tokens * self.dtype.itemsize)
            if self.marked:
                self._check_size(shard["marks"]["file"], tokens)
            if self.pictured:
                self._check_size(shard["places"]["file"], 8 * shard["rows"])
                ends = np.fromfile(self.path / shard["places"]["file"], "<u8")
                self._check_size(shard["images"]["file"], int(ends.max(initial=0)))

    def _check_size(self, name: str, expected: int) -> None:
        path = self.path / name
        if not path.is_file():
            raise InputError(f"{path} is missing, though the index names it. Prepare the data again.")
        if path.stat().st_size != expected:
            raise InputError(f"{path} has {path.stat().st_size} bytes, not {expected}. Prepare the data again.")

    def _check_heldout(self, n: int | None) -> int:
        n = self.num_heldout if n is None else n
        if not 0 <= n <= self.num_heldout:
            raise UsageError(
                f"{n} held-out sequences were asked for and {self.path} has {self.num_heldout}. Ask for fewer, or "
                "prepare the data with a larger heldout_sequences."
            )
        return n
