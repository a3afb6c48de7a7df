"""One preparation of a token store: read, tokenize, hold documents out, pack; saved now and then, continued exactly."""

import dataclasses
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from compress.base.disk import clear_folder, read_json, write_json
from compress.base.errors import InputError, InterruptedRun
from compress.base.progress import Bar, progress_bar, say
from compress.base.signals import StopRequest
from compress.base.units import format_count
from compress.data.config import DataConfig
from compress.data.preflight import check_space
from compress.data.sources.hub import HubSource
from compress.data.sources.sources import Source, find_source
from compress.data.sources.stream import Item, Position, Retry, Stopped, Unavailable, batches, texts
from compress.data.store import partial
from compress.data.store.conversations import TOO_LONG
from compress.data.store.encode import Document, Encoded, Pictured, encoding, in_order
from compress.data.store.heldout import Alike, HeldOutPool
from compress.data.store.index import INDEX
from compress.data.store.marks import filler, is_cut
from compress.data.store.pictures import OneARow
from compress.data.store.record import Counts, check_amounts, describe_rows, identity, make_index, wanted_tokens
from compress.data.store.shards import ShardWriter, write_rows
from compress.data.store.way import check_options, find_way
from compress.model.framing import Framing
from compress.model.tokenizer import TokenizerSpec

SAVE_EVERY_S = 30.0
_BATCHES_AHEAD = 2
_HELD_OUT_SHARE = 0.1


class OfBlend(NamedTuple):
    """What a source of a blend is told beside its own config, whose options of instructions are for other sources where
    its rows are texts."""

    framing: Framing | None
    """How texts are framed; None where this is to decide it."""


class Preparation:
    """Everything between a locked `OUT.partial/` and the finished store `out`."""

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Any,
        spec: TokenizerSpec,
        reader: Path,
        out: Path,
        folder: Path,
        stop: StopRequest,
        of_blend: OfBlend | None = None,
    ) -> None:
        self._of_blend = of_blend
        self._config, self._out, self._folder, self._stop = config, out, folder, stop
        self._tokenizer, self._spec, self._reader = tokenizer, spec, reader
        self.began_here = not partial.can_continue(folder)
        """Whether nothing in the folder is an earlier process's, so that a failure may remove it."""
        self._identity = identity(config, self._spec.sha256)
        self._retry = Retry(stop)
        self._wanted = wanted_tokens(config)
        self._position = Position(0, 0)
        self._counts = Counts()
        self._started = self._saved_at = time.monotonic()
        self._seconds_before = 0.0

    def run(self, *, visible: bool) -> None:
        """Prepare from wherever an earlier process stopped, and publish the store.

        Raises:
            InterruptedRun: a signal asked to stop; the state is saved.
            Unavailable: the network failed for too long; the state is saved.
            InputError: the source cannot be used or has too little text.
            UsageError: the disk is too small, or options are of instructions and the rows are texts.
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
        try:
            read_json(self._folder / INDEX)
        except InputError:
            return False
        partial.publish(self._folder, self._out)
        return True

    def _connect(self) -> dict[str, Any] | None:
        """Find the source, and the state of an earlier process, which prepared the same (see `changes_of_begun`)."""
        state = partial.load_state(self._folder)
        self._source: Source = find_source(self._config, state["commit"] if state else None)
        (name,) = self._config.datasets
        self._retry.call(name, self._source.connect)
        self._source.unread.tell(name)
        self._way = find_way(self._config, self._source, self._tokenizer, self._spec, self._retry, self._reader)
        if self._of_blend is None and self._way.form.is_text:
            check_options(self._config)
        if said := self._way.describe():
            say(said)
        return state

    def _restore(self, state: dict[str, Any] | None) -> ShardWriter:
        if state:
            framing = Framing(*map(tuple, state.get("framing", ())))
            try:
                if state.get("instructions") != self._way.record():
                    raise ValueError("The chat template, or the form of the rows, is another than before")
                writer = self._begin(framing, state["writer"], state.get("alike", "exact"), state.get("share"))
            except ValueError as error:
                say(f"{error}: starting again.")
            else:
                self._position = Position(*state["position"])
                self._counts = Counts(**state["counts"])
                self._pool.restore(state["pool"], self._encoder)
                self._seconds_before = state["seconds"]
                self._decided = state.get("decided")
                say(f"Continuing {self._out}: {format_count(writer.tokens)} tokens are prepared already.")
                return writer
        clear_folder(self._folder)
        self.began_here = True
        check_space(self._config, self._spec, self._out, marks=self._way.chat is not None)
        told = None if self._of_blend is None or self._way.chat is not None else self._of_blend.framing
        found = (told, None) if told is not None else self._way.framing(self._source, self._reader, self._retry)
        framing, self._decided = found
        return self._begin(framing, None, "normalised", 1)

    def _begin(self, framing: Framing, writer: dict[str, Any] | None, alike: Alike, share: int | None) -> ShardWriter:
        """What takes in documents that are framed so."""
        config, self._framing = self._config, framing
        self._encoder = self._way.encoder(framing)
        self._pool = HeldOutPool(config.heldout_sequences, self._way.layout(framing, share), config.seed, alike)
        marks = self._way.chat is not None
        return ShardWriter(
            self._folder,
            self._spec.dtype,
            config.seq_len,
            writer,
            framing.rows,
            marks=marks,
            images=self._way.form.has_images,
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
            "alike": self._pool.alike,
            "share": self._pool.layout.share,
            "framing": self._framing,
            "instructions": self._way.record(),
            "decided": self._decided,
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
        items = self._way.items(self._source, self._position, self._retry)
        unit, total, done = self._extent()
        with (
            progress_bar(f"Preparing {self._out}", total, unit=unit, done=done, visible=visible) as bar,
            encoding(self._encoder) as submit,
        ):
            first = self._writer.tokens
            for batch, encoded in in_order(batches(items), texts, submit, window=_BATCHES_AHEAD):
                num_shards = len(self._writer.shards)
                finished = self._take_batch(batch, encoded)
                if finished or self._stop:
                    return
                if len(self._writer.shards) > num_shards or time.monotonic() - self._saved_at > SAVE_EVERY_S:
                    self._save()
                done = self._show(bar, batch[-1], done, self._writer.tokens - first)

    def _take_batch(self, batch: list[Item], encoded: Sequence[Encoded]) -> bool:
        """Take in a batch row by row; true once there are enough tokens."""
        ids = iter(encoded)
        for item in batch:
            found = next(ids) if item.is_document else None
            if isinstance(found, str):
                self._skip(item._replace(row=item.row._replace(fault=found)))
            elif found is not None:
                self._take_document(item.row.text or "", found)
            elif item.row.fault is None:
                self._counts.empty += 1
            else:
                self._skip(item)
            self._position = item.after
            if self._enough():
                return True
        return False

    def _take_document(self, text: str, ids: Document) -> None:
        self._counts.documents += 1
        self._counts.text_bytes += len(text.encode())
        self._counts.cut += self._way.chat is not None and not isinstance(ids, Pictured) and is_cut(ids)
        for released in self._pool.offer(text, ids):
            self._append(released)

    def _append(self, ids: Document) -> None:
        """Add a training document. A conversation stays whole: it begins a row where the last has no room for it. One
        about images has a row to itself."""
        if isinstance(ids, Pictured):
            assert isinstance(self._pool.layout, OneARow)
            self._writer.append(self._pool.layout.filled(ids), self._wanted, ids.record)
            return
        if self._way.chat is not None:
            self._fill_up(len(ids))
        self._writer.append(ids, self._wanted)

    def _fill_up(self, wanted: int | None = None) -> None:
        self._writer.append(filler(self._writer.filled, self._config.seq_len, self._spec.eos_id, wanted), self._wanted)

    def _skip(self, item: Item) -> None:
        unit = "line" if self._source.files[item.file].layout.format in ("jsonl", "txt") else "row"
        where = f"{self._source.full_name(item.file)}, {unit} {item.row.number + (unit == 'line')}"
        fault = item.row.fault or ""
        if self._config.on_bad_row == "error" and fault != TOO_LONG:
            raise InputError(f"{where} {fault}. Mend it, or set data.on_bad_row: skip to leave such rows out.")
        self._counts.skip(where, fault, ends_file=item.ends_file)

    def _enough(self) -> bool:
        return self._wanted is not None and self._writer.tokens >= self._wanted

    def _extent(self) -> tuple[str, int, int]:
        """Unit, total and done of the progress bar: tokens wanted, or else bytes of the files."""
        if self._wanted is not None:
            return "tokens", self._wanted, self._writer.tokens
        sizes = [file.size for file in self._source.files]
        return "bytes", sum(sizes), sum(sizes[: self._position.file])

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

    def _holds_too_much(self) -> bool:
        """Whether held-out documents are too few, or take what training needs: then each gives more rows."""
        if not self._pool.full:
            return True
        if self._wanted is not None:
            return self._writer.tokens < self._wanted
        held = self._pool.whole_tokens
        return held > _HELD_OUT_SHARE * (held + self._writer.tokens)

    def _finish(self) -> None:
        while self._pool.can_widen and self._holds_too_much():
            for released in self._pool.widen():
                self._append(released)
        if self._way.chat is not None:
            self._fill_up()
        check_amounts(self._config, self._counts, self._pool, self._writer.tokens, self._wanted)
        source = self._source.fingerprint(self._position.file + 1)
        rows = self._pool.rows(self._encoder)
        heldout = write_rows(self._folder, "heldout", rows, self._spec.dtype) if len(rows.ids) else {"rows": 0}
        content = {
            "seq_len": self._config.seq_len,
            **self._spec.description,
            "train": {"rows": self._writer.finish(), "shards": self._writer.shards},
            "heldout": {**heldout, **describe_rows(rows, spread=self._pool.layout.share is not None)},
        }
        framing = {**self._framing._asdict(), "decided": self._decided}
        how = self._way.record()
        index = make_index(self._config, content, framing, how, self._counts, self._pool, source, self._seconds())
        write_json(self._folder / INDEX, index)
        partial.publish(self._folder, self._out)
        if copies := self._pool.copies:
            say(
                f"{copies} copies of held-out documents are in neither part, {self._pool.near_copies} of them written "
                "otherwise (white space, case). Copies that differ in a word are not looked for."
            )
        if skipped := self._counts.bad_rows + self._counts.damaged_files:
            say(f"Skipped {skipped} while preparing {self._out}: {self._counts}.")
        if self._counts.cut:
            say(f"{self._counts.cut} conversations were longer than a row of {self._config.seq_len} tokens, and cut.")
