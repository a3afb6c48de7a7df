"""One preparation of a token store: read, tokenize, hold documents out, pack; saved now and then, continued exactly."""

import dataclasses
import math
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from compress.artifacts import manifest, publish_folder, read_json, sha256_json, write_json
from compress.config import to_dict
from compress.data import partial
from compress.data.config import DataConfig
from compress.data.encode import Encoder, Ids, TokenizerSpec, encoding, in_order
from compress.data.heldout import HeldOutPool
from compress.data.hub import HubSource
from compress.data.shards import ShardWriter, write_rows
from compress.data.sources import Source, find_source
from compress.data.store import FORMAT, fingerprint_of
from compress.data.stream import Item, Position, Retry, Stopped, Unavailable, read_items
from compress.errors import InputError, InterruptedRun, UsageError
from compress.progress import Bar, progress_bar, say
from compress.runtime import StopRequest
from compress.units import format_bytes, format_count

SAVE_EVERY_S = 30.0
_BATCH_CHARS = 2**20
_BATCH_ROWS = 2048
_BATCHES_AHEAD = 2
_EXAMPLES = 20
_NOT_CONTENT = ("dataset", "config", "split", "num_proc")


def identity(config: DataConfig, spec: TokenizerSpec) -> dict[str, Any]:
    """What decides a store's content, besides the source's own content."""
    options = {key: value for key, value in to_dict(config).items() if key not in _NOT_CONTENT}
    return {**options, "tokenizer_sha256": spec.sha256}


@dataclasses.dataclass
class Counts:
    """What was read so far."""

    documents: int = 0
    text_bytes: int = 0
    empty: int = 0
    bad_rows: int = 0
    damaged_files: int = 0
    examples: list[str] = dataclasses.field(default_factory=list)
    """The first few skipped rows: file, row and what was wrong."""

    def skip(self, where: str, fault: str, *, ends_file: bool) -> None:
        """Count a bad row, or a file that is damaged from here on."""
        if ends_file:
            self.damaged_files += 1
        else:
            self.bad_rows += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"{where} {fault}")

    def __str__(self) -> str:
        return (
            f"{self.documents} documents, {self.empty} empty rows, {self.bad_rows} bad rows and {self.damaged_files} "
            f"damaged files{', first: ' + self.examples[0] if self.examples else ''}"
        )


class Preparation:
    """Everything between a locked `OUT.partial/` and the finished store `out`."""

    def __init__(self, config: DataConfig, spec: TokenizerSpec, out: Path, folder: Path, stop: StopRequest) -> None:
        self._config, self._spec, self._out, self._folder, self._stop = config, spec, out, folder, stop
        self._identity = identity(config, spec)
        self._encoder = Encoder(spec)
        self._retry = Retry(stop)
        self._wanted = None if config.tokens is None else math.ceil(config.tokens / config.seq_len) * config.seq_len
        self._position = Position(0, 0)
        self._counts = Counts()
        self._pool = HeldOutPool(config.heldout_sequences * config.seq_len, config.seed)
        self._started = self._saved_at = time.monotonic()
        self._seconds_before = 0.0

    def run(self, *, visible: bool) -> None:
        """Prepare from wherever an earlier process stopped, and publish the store.

        Raises:
            InterruptedRun: a signal asked to stop; the state is saved.
            Unavailable: the network failed for too long; the state is saved.
            InputError: the source cannot be used or has too little text.
            UsageError: the disk is too small.
        """
        if self._publish_complete():
            return
        try:
            state = self._connect()
            with closing(self._restore(state)) as self._writer:
                try:
                    self._read(visible=visible)
                    if self._stop:
                        raise Stopped
                except (Stopped, Unavailable):
                    self._save()
                    raise
                self._finish()
        except Stopped:
            raise InterruptedRun(
                f"Stopped by {self._stop.signal_name} while preparing {self._out}; what was prepared is saved. Run the "
                "same command again to continue."
            ) from None

    def _publish_complete(self) -> bool:
        """Publish a store that an earlier process completed but did not come to rename."""
        if not (self._folder / "index.json").is_file():
            return False
        index = read_json(self._folder / "index.json")
        if index["identity"] != self._identity or not find_source(self._config).matches(index["source"]):
            partial.clear(self._folder)
            return False
        self._publish()
        return True

    def _connect(self) -> dict[str, Any] | None:
        """Find the source, and the state of an earlier process if that prepared the same."""
        state = partial.load_state(self._folder)
        self._source: Source = find_source(self._config, state["commit"] if state else None)
        if state and (state["identity"], state["source"]) != (self._identity, self._source.listing()):
            say(f"{self._folder} was begun with other options or data: starting again.")
            state = None
            self._source = find_source(self._config)
        self._retry.call(self._config.dataset, self._source.connect)
        return state

    def _restore(self, state: dict[str, Any] | None) -> ShardWriter:
        if state:
            try:
                writer = ShardWriter(self._folder, self._spec.dtype, self._config.seq_len, state["writer"])
            except ValueError as error:
                say(f"{error}: starting again.")
            else:
                self._position = Position(*state["position"])
                self._counts = Counts(**state["counts"])
                self._pool.restore(state["pool"], self._encoder)
                self._seconds_before = state["seconds"]
                say(f"Continuing {self._out}: {format_count(writer.tokens)} tokens are prepared already.")
                return writer
        partial.clear(self._folder)
        self._check_space()
        return ShardWriter(self._folder, self._spec.dtype, self._config.seq_len, None)

    def _check_space(self) -> None:
        needed = (
            (self._wanted or 0) + self._config.heldout_sequences * self._config.seq_len
        ) * self._spec.dtype.itemsize
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise UsageError(
                f"{self._out} needs {format_bytes(needed)} and the disk has {format_bytes(free)} free. Name a folder "
                "on another disk, or ask for fewer data.tokens."
            )

    def _save(self) -> None:
        self._saved_at = time.monotonic()
        state = {
            "identity": self._identity,
            "source": self._source.listing(),
            "commit": self._source.commit if isinstance(self._source, HubSource) else None,
            "position": list(self._position),
            "counts": dataclasses.asdict(self._counts),
            "pool": self._pool.state(),
            "writer": self._writer.state(),
            "seconds": self._seconds(),
        }
        partial.save_state(self._folder, state)

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    def _read(self, *, visible: bool) -> None:
        """Take in rows until there are enough tokens, the source ends, or a stop is requested."""
        if self._enough():
            return
        items = read_items(self._source, self._config.text_column, self._position, self._retry)
        label, total, done = self._extent()
        ahead = _BATCHES_AHEAD + (self._config.num_proc or 0)
        with (
            progress_bar(label, total, done=done, visible=visible) as bar,
            encoding(self._spec, self._config.num_proc) as submit,
        ):
            first = self._writer.tokens
            for batch, encoded in in_order(_batches(items), _texts, submit, window=ahead):
                num_shards = len(self._writer.shards)
                finished = self._take_batch(batch, encoded)
                if finished or self._stop:
                    return
                if len(self._writer.shards) > num_shards or time.monotonic() - self._saved_at > SAVE_EVERY_S:
                    self._save()
                done = self._show(bar, batch[-1], done, self._writer.tokens - first)

    def _take_batch(self, batch: list[Item], encoded: list[Ids]) -> bool:
        """Take in a batch row by row; true once there are enough tokens."""
        ids = iter(encoded)
        for item in batch:
            if _is_document(item):
                self._take_document(item.row.text or "", next(ids))
            elif item.row.fault is None:
                self._counts.empty += 1
            else:
                self._skip(item)
            self._position = item.after
            if self._enough():
                return True
        return False

    def _take_document(self, text: str, ids: Ids) -> None:
        self._counts.documents += 1
        self._counts.text_bytes += len(text.encode())
        for released in self._pool.offer(text, ids):
            room = None if self._wanted is None else self._wanted - self._writer.tokens
            self._writer.append(released[:room])

    def _skip(self, item: Item) -> None:
        unit = "line" if self._source.files[item.file].layout.format in ("jsonl", "txt") else "row"
        where = f"{self._source.full_name(item.file)}, {unit} {item.row.number + (unit == 'line')}"
        fault = item.row.fault or ""
        if self._config.on_bad_row == "error":
            raise InputError(f"{where} {fault}. Mend it, or set data.on_bad_row: skip to leave such rows out.")
        self._counts.skip(where, fault, ends_file=item.ends_file)

    def _enough(self) -> bool:
        return self._wanted is not None and self._writer.tokens >= self._wanted

    def _extent(self) -> tuple[str, int, int]:
        """Label, total and done of the progress bar: tokens wanted, or else bytes of the files."""
        if self._wanted is not None:
            return "Preparing tokens", self._wanted, self._writer.tokens
        sizes = [file.size for file in self._source.files]
        return "Preparing, bytes", sum(sizes), sum(sizes[: self._position.file])

    def _show(self, bar: Bar, last: Item, done: int, new_tokens: int) -> int:
        now = self._writer.tokens
        if self._wanted is None:
            sizes = [file.size for file in self._source.files]
            now = sum(sizes[: last.file]) + int(sizes[last.file] * last.row.progress)
        rate = new_tokens / max(time.monotonic() - self._started, 1e-3)
        tokens, documents = format_count(self._writer.tokens), self._counts.documents
        note = f"{tokens} tokens, {format_count(rate)} tokens/s, {documents} documents"
        bar.advance(max(now - done, 0), note)
        return max(now, done)

    def _finish(self) -> None:
        self._check_amounts()
        source = self._source.fingerprint(self._position.file + 1)
        ids, heldout_bytes = self._pool.rows(self._encoder, self._config.seq_len)
        heldout = write_rows(self._folder, "heldout.bin", ids, self._spec.dtype) if len(ids) else {"rows": 0}
        rows = self._writer.finish()
        write_json(
            self._folder / "index.json",
            self._index(rows, source, {**heldout, "documents": self._pool.documents, "bytes": heldout_bytes}),
        )
        self._publish()
        if skipped := self._counts.bad_rows + self._counts.damaged_files:
            say(f"Skipped {skipped} while preparing {self._out}: {self._counts}.")

    def _publish(self) -> None:
        partial.forget_state(self._folder)
        publish_folder(self._folder, self._out)

    def _check_amounts(self) -> None:
        """Refuse a store with fewer tokens than asked for."""
        config, found = self._config, self._writer.tokens
        if not self._counts.documents:
            raise InputError(f"{config.dataset} gives no tokens: {self._counts}.")
        if not self._pool.full:
            raise InputError(
                f"{config.dataset} has {self._pool.tokens} tokens altogether, too few to hold out "
                f"{config.heldout_sequences} sequences of {config.seq_len} ({self._counts}). Lower "
                "data.heldout_sequences or data.seq_len."
            )
        usable = found // config.seq_len * config.seq_len
        if not usable:
            raise InputError(
                f"{config.dataset} leaves {found} training tokens after the held-out documents, fewer than one "
                f"sequence of {config.seq_len} ({self._counts}). Lower data.heldout_sequences or data.seq_len."
            )
        if self._wanted is not None and found < self._wanted:
            raise InputError(
                f"{config.dataset} has only {found} training tokens of the {config.tokens} asked for ({self._counts}). "
                f"Set data.tokens to {usable} or less, or leave it out for everything in a local source."
            )

    def _index(self, rows: int, source: dict[str, Any], heldout: dict[str, Any]) -> dict[str, Any]:
        content = {
            "seq_len": self._config.seq_len,
            "dtype": {2: "uint16", 4: "uint32"}[self._spec.dtype.itemsize],
            "vocab_size": self._spec.vocab_size,
            "eos_id": self._spec.eos_id,
            "tokenizer_sha256": self._spec.sha256,
            "train": {"rows": rows, "shards": self._writer.shards},
            "heldout": heldout,
        }
        counts = dataclasses.asdict(self._counts)
        shards = [*self._writer.shards, *([heldout] if heldout["rows"] else [])]
        return {
            "format": FORMAT,
            "fingerprint": fingerprint_of(content),
            **content,
            "documents": counts.pop("documents"),
            "text_bytes": counts.pop("text_bytes"),
            "skipped": {**counts, "heldout_copies": self._pool.copies},
            "identity": self._identity,
            "source": source,
            "manifest": manifest(
                config=to_dict(self._config),
                inputs={"tokenizer": self._spec.sha256, "source": sha256_json(source)},
                outputs={shard["file"]: shard["sha256"] for shard in shards},
                seconds=self._seconds(),
            ),
        }


def _is_document(item: Item) -> bool:
    return item.row.text is not None and not item.row.text.isspace() and item.row.text != ""


def _texts(batch: list[Item]) -> list[str]:
    return [item.row.text for item in batch if item.row.text is not None and _is_document(item)]


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Rows in groups of about a million characters; what a group holds has no influence on the store."""
    batch: list[Item] = []
    chars = 0
    for item in items:
        batch.append(item)
        chars += len(item.row.text or "")
        if chars >= _BATCH_CHARS or len(batch) >= _BATCH_ROWS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch
