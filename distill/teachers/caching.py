"""The pass over a token store that makes a cache of the teacher's signals.

A pass that was cut goes on behind the rows that it has saved, and leaves the same bytes as one that was not.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.base.config import to_dict
from compress.base.currency import input_changes, setting_changes
from compress.base.disk import owned, publish_folder, read_json, sha256_file, sha256_json, unfinished, write_json
from compress.base.errors import InterruptedRun, UsageError
from compress.base.machine import default_device
from compress.base.outputs import UNFINISHED, Output, has_fields, has_only, require_outputs
from compress.base.progress import progress_bar, say, working
from compress.base.records import manifest
from compress.base.signals import stop_on_signal
from compress.data import TokenStore
from compress.distill.config import DistillConfig
from compress.distill.resources.auto import Here, resolve
from compress.distill.resources.schedule import most_heldout_rows
from compress.distill.resources.switches import in_one_order, tuned
from compress.distill.rows.batch import Batch, micro_batch
from compress.distill.rows.documents import packed_hidden_states
from compress.distill.rows.source import StoreRows
from compress.distill.teachers.cache import FORMAT, INDEX, TeacherCache, cache_output, fingerprint_of, save_head
from compress.distill.teachers.config import CacheConfig
from compress.distill.teachers.kinds import SPARSE, hidden_rows, read_rounded, rounded_rows
from compress.distill.teachers.quantization import MEASURED_TOKENS, divergence_of_states
from compress.distill.teachers.row_files import Bytes, RowWriter
from compress.distill.teachers.source import load_teacher
from compress.model.costs import model_costs
from compress.model.files import model_fingerprint
from compress.model.load import load_config
from compress.model.parts import OutputHead, output_head

SAVE_EVERY_S = 30.0
Seconds = Callable[[], float]
_STATE = "state.json"
_NAMES = rf"rows-[0-9]{{5}}\.bin|rows\.table|head\.safetensors|(state|index)\.json{UNFINISHED}"
_OF_TRAINING = ("precision", "teacher_precision", "attention", "document_mask")


def cache_settings(config: CacheConfig, training: DistillConfig) -> dict[str, Any]:
    """What decides a cache beside teacher and text: its own options, and how the training would run the teacher."""
    asked = to_dict(training)
    return {**to_dict(config), **{name: asked[name] for name in _OF_TRAINING}}


def cache_inputs(teacher: Path, store: TokenStore) -> dict[str, str]:
    """The fingerprints of what a cache is made of, as a training has them."""
    return {"teacher": sha256_json(model_fingerprint(teacher)), "data": store.fingerprint}


def unfinished_cache(out: Path) -> Output:
    """Where a cache grows until it is whole."""
    return Output(unfinished(out), "an unfinished cache of a teacher", _is_begun, folder=True)


def _is_begun(folder: Path) -> bool:
    records = [path for path in (folder / INDEX, folder / _STATE) if path.exists()]
    return has_only(_NAMES)(folder) and all(map(has_fields("manifest"), records))


def cache_begun_otherwise(out: Path, settings: Mapping[str, Any], inputs: Mapping[str, Any]) -> list[str]:
    """What differs between the cache `out` that an earlier process began and one of these settings and inputs."""
    state = unfinished(out) / _STATE
    if not state.is_file():
        return []
    made = read_json(state)["manifest"]
    return setting_changes(CacheConfig, made["config"], settings) + input_changes(made["inputs"], inputs)


def make_cache(config: CacheConfig, training: DistillConfig, *, teacher: Path, data: Path, out: Path) -> TeacherCache:
    """Run a teacher once over all rows of a token store, training and held-out, and keep what `config` asks for.

    Called again it goes on where it was cut, or opens the cache that is there and made of the same. One process does
    it, on one device.

    Args:
        config: what is kept.
        training: the options of the trainings that will read it: they say in which precision, with which attention and
            whether with documents apart the teacher is run.
        teacher: its folder.
        data: the folder of the token store.
        out: the folder to make.

    Raises:
        UsageError: `out` holds another cache, the beginning of one, or something else; or another process is at it.
        InputError: a model or a store that cannot be used.
        InterruptedRun: a signal came; what was done is saved.
    """
    store = TokenStore.open(data)
    settings, inputs = cache_settings(config, training), cache_inputs(teacher, store)
    partial = unfinished(out)
    require_outputs(unfinished_cache(out), cache_output(out))
    if (out / INDEX).is_file():
        found = TeacherCache.open(out)
        made = found.index["manifest"]
        _refuse(out, setting_changes(CacheConfig, made["config"], settings) + input_changes(made["inputs"], inputs))
        return found
    with owned(partial):
        _refuse(partial, cache_begun_otherwise(out, settings, inputs))
        if not (partial / INDEX).is_file():
            _Pass(config, training, teacher, store, partial, {"config": settings, "inputs": inputs}).run()
        (partial / _STATE).unlink(missing_ok=True)
        publish_folder(partial, out)
    return TeacherCache.open(out)


def check_rounding(config: CacheConfig, *, num_heldout: int) -> None:
    """Refuse to round what cannot be measured.

    Raises:
        UsageError: there are no held-out rows.
    """
    if config.rows == "int8" and not num_heldout:
        raise UsageError("cache: rows: int8 is measured on held-out rows and there are none; raise heldout_sequences.")


def _refuse(path: Path, differing: list[str]) -> None:
    if differing:
        raise UsageError(
            f"{path} holds a cache made otherwise: {'; '.join(differing)}. Name another folder, or remove this one."
        )


@dataclasses.dataclass(frozen=True)
class _Pass:
    """One pass, or what is left of it."""

    config: CacheConfig
    training: DistillConfig
    teacher: Path
    store: TokenStore
    folder: Path
    asked: Mapping[str, Any]
    """Settings and inputs, as of a manifest."""

    def run(self) -> None:
        """Write all files of the cache, the index last."""
        begun = read_json(self.folder / _STATE) if (self.folder / _STATE).is_file() else None
        since = time.monotonic() - (0.0 if begun is None else begun["seconds"])

        def seconds() -> float:
            return time.monotonic() - since

        with tuned(self.training), in_one_order(self.training):
            here = self._here()
            with working("opening the teacher"):
                model, kl = load_teacher(self.training, self.teacher, here, self._measured())
                head = output_head(model)
                saved_head = save_head(head, self.folder)
                rounding = self._rounding_kl(model, head, here.device) if self.config.rows == "int8" else None
            writer = RowWriter(self.folder, None if begun is None else begun["rows"])
            self._write(writer, functools.partial(self._kept, model, head, here.device), here.micro_batch_rows, seconds)
        shards = writer.finish()
        names = [path.name for path in sorted(self.folder.iterdir()) if path.name != _STATE]
        outputs = {name: sha256_file(self.folder / name) for name in names}
        index = {
            "format": FORMAT,
            "kind": self.config.kind,
            "precision": here.precision,
            "teacher_precision": self.training.teacher_precision,
            "teacher_kl": kl,
            **({} if rounding is None else {"rounding_kl": rounding}),
            "apart": here.documents_apart,
            "seq_len": self.store.seq_len,
            "num_rows": writer.rows,
            "num_heldout": self.store.num_heldout,
            "width": model.config.get_text_config().hidden_size,
            "vocabulary": len(head.weight),
            "head": saved_head,
            "shards": shards,
            "manifest": manifest(**self.asked, outputs=outputs, seconds=seconds()),
        }
        write_json(self.folder / INDEX, {**index, "fingerprint": fingerprint_of(index)})

    def _here(self) -> Here:
        tokens = (self.store.num_rows + self.store.num_heldout) * self.store.seq_len
        whole = dataclasses.replace(self.training, shard="none")
        return resolve(
            whole,
            default_device(),
            processes=1,
            seq_len=self.store.seq_len,
            flops=model_costs(load_config(self.teacher)).prefill_flops(self.store.seq_len) * tokens,
            documents_apart=self.training.document_mask or self.store.apart,
        )

    def _measured(self) -> Batch:
        """The held-out rows that a quantised teacher is measured on, as in a training."""
        return self._rows(min(most_heldout_rows(self.training), self.store.num_heldout)).heldout()

    @torch.inference_mode()
    def _rounding_kl(self, model: Any, head: OutputHead, device: torch.device) -> float:
        """KL(exact || rounded) on held-out tokens that are labels, nats a token.

        Raises:
            UsageError: it is above `teacher_max_kl`, or there are no such tokens.
        """
        measured = self._measured()
        check_rounding(self.config, num_heldout=len(measured))
        exact, rounded = [], []
        for start in range(min(len(measured), max(1, MEASURED_TOKENS // self.store.seq_len))):
            batch = measured.take(np.array([start]))
            states = _states(model, device, batch)
            read = read_rounded(rounded_rows(states), states.shape[1], states.shape[2], states.dtype)
            piece = micro_batch(batch).to(device)
            exact.append(piece.with_label(states))
            rounded.append(piece.with_label(read.to(device)))
        kl = divergence_of_states(torch.cat(exact), torch.cat(rounded), head, self.training)
        limit = self.training.teacher_max_kl
        say(f"Hidden states in 8 bits differ from the exact ones by {kl:.2g} nats a token (held-out rows).")
        if not kl <= limit:
            raise UsageError(
                f"cache: rows: int8 changes the teacher by {kl:.3g} nats a token on held-out rows, more than "
                f"distill.teacher_max_kl = {limit}. Use rows: exact, or raise the limit if that is little beside what "
                "the student will be off by."
            )
        return kl

    @torch.inference_mode()
    def _kept(self, model: Any, head: OutputHead, device: torch.device, batch: Batch) -> list[Bytes]:
        """What is kept of each row of a batch."""
        states = _states(model, device, batch)
        if batch.row_ids[0] >= self.store.num_rows:
            return hidden_rows(states)
        if self.config.kind == "hidden":
            return hidden_rows(states) if self.config.rows == "exact" else rounded_rows(states)
        return SPARSE[self.config.kind](self.config, len(head.weight)).encode(states, head, batch.row_ids)

    def _write(self, writer: RowWriter, kept: Callable[[Batch], list[Bytes]], size: int, seconds: Seconds) -> None:
        """Run the teacher on the rows that are left, `size` at once. What is saved ends with a batch: the next process
        goes on with the same ones."""
        done, total = writer.rows, self.store.num_rows + self.store.num_heldout
        if done:
            say(f"Continuing the cache in {self.folder}: {done} of {total} rows are done.")
        length, saved_at = self.store.seq_len, time.monotonic()
        with (
            stop_on_signal() as stop,
            contextlib.closing(writer),
            progress_bar("Running the teacher", total * length, unit="tokens", done=done * length) as bar,
        ):
            for batch in self._batches(done, size):
                writer.append(kept(batch))
                bar.advance(batch.ids.size)
                stopping = stop and writer.rows < total
                if stopping or time.monotonic() - saved_at >= SAVE_EVERY_S:
                    state = {"manifest": self.asked, "seconds": seconds(), "rows": writer.save()}
                    write_json(self.folder / _STATE, state)
                    saved_at = time.monotonic()
                if stopping:
                    raise InterruptedRun(
                        f"Stopped by {stop.signal_name} after {writer.rows} of {total} rows, which are in "
                        f"{self.folder}. Run the same command again to continue."
                    )

    def _batches(self, done: int, size: int) -> Iterator[Batch]:
        """All rows but the first `done`; none holds rows to train on and held-out ones."""
        number = self.store.num_rows
        rows = self._rows(self.store.num_heldout)
        for start in range(done, number, size):
            yield rows.read(np.arange(start, min(start + size, number)))
        heldout = rows.heldout()
        for start in range(max(0, done - number), len(heldout), size):
            yield heldout.take(np.arange(start, min(start + size, len(heldout))))

    def _rows(self, num_heldout: int) -> StoreRows:
        apart = self.training.document_mask or self.store.apart
        return StoreRows(self.store, seed=0, epochs=1, num_heldout=num_heldout, apart=apart, selection=None)


def _states(model: Any, device: torch.device, batch: Batch) -> Tensor:
    """Last hidden states [B, S, D], as in a training."""
    piece = micro_batch(batch).to(device)
    hidden = packed_hidden_states(model, piece.ids, piece.positions, piece.boundaries)
    return hidden.view(*piece.ids.shape, -1)
