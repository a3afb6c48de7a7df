"""What index.json says about how a store was made, and whether there was enough to make it from."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from compress.base.config import to_dict
from compress.base.currency import decisive
from compress.base.disk import sha256_json
from compress.base.errors import InputError
from compress.base.records import manifest
from compress.data.config import DataConfig
from compress.data.sources.instructions import NO_ANSWER
from compress.data.store.conversations import TOO_LONG
from compress.data.store.heldout import HeldOutPool
from compress.data.store.index import FORMAT, fingerprint_of, hashes_of
from compress.data.store.layout import TextRows

_EXAMPLES = 20


def wanted_tokens(config: DataConfig) -> int | None:
    """Training tokens to prepare, in whole rows of each source; None for all there are."""
    found = [part.tokens for part in config.parts()]
    if None in found:
        return None
    return sum(math.ceil((tokens or 0) / config.seq_len) * config.seq_len for tokens in found)


def identity(config: DataConfig, tokenizer_sha256: str) -> dict[str, Any]:
    """What decides a store's content, besides the source's own content."""
    return {**decisive(DataConfig, to_dict(config)), "tokenizer_sha256": tokenizer_sha256}


@dataclasses.dataclass
class Counts:
    """What was read so far."""

    documents: int = 0
    text_bytes: int = 0
    empty: int = 0
    bad_rows: int = 0
    no_answer: int = 0
    """Conversations without an answer, or with none of it within a row; bad rows too."""
    too_long: int = 0
    """Conversations longer than a row that were left out; bad rows too."""
    cut: int = 0
    """Conversations longer than a row that were cut."""
    damaged_files: int = 0
    examples: list[str] = dataclasses.field(default_factory=list)
    """The first few skipped rows: file, row and what was wrong."""

    def skip(self, where: str, fault: str, *, ends_file: bool) -> None:
        """Count a bad row, or a file that is damaged from here on."""
        if ends_file:
            self.damaged_files += 1
        else:
            self.bad_rows += 1
            self.no_answer += fault.startswith(NO_ANSWER)
            self.too_long += fault.startswith(TOO_LONG)
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"{where} {fault}")

    def __str__(self) -> str:
        kinds = {"without an answer": self.no_answer, "too long": self.too_long}
        of_them = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
        return (
            f"{self.documents} documents, {self.empty} empty rows, {self.bad_rows} bad rows"
            f"{of_them and f' ({of_them})'} and {self.damaged_files} "
            f"damaged files{', first: ' + self.examples[0] if self.examples else ''}"
        )


def check_amounts(config: DataConfig, counts: Counts, pool: HeldOutPool, found: int, wanted: int | None) -> None:
    """Refuse to make a store from `found` training tokens when that is too few.

    Raises:
        InputError: no tokens at all, too few for the held-out rows or for one row, or fewer than `wanted`.
    """
    if not counts.documents:
        raise InputError(f"{config.dataset} gives no tokens: {counts}.")
    if not pool.full:
        raise InputError(
            f"{config.dataset} has {pool.tokens} tokens altogether{_of_copies(counts, pool)}, too few to hold out "
            f"{config.heldout_sequences} sequences of {config.seq_len} ({counts}). Lower data.heldout_sequences or "
            "data.seq_len."
        )
    usable = found // config.seq_len * config.seq_len
    if not usable:
        raise InputError(
            f"{config.dataset} leaves {found} training tokens after the held-out documents{_and_copies(pool)}, fewer "
            f"than one sequence of {config.seq_len} ({counts}). Lower data.heldout_sequences or data.seq_len."
        )
    if wanted is not None and found < wanted:
        raise InputError(
            f"{config.dataset} has only {found} training tokens of the {config.tokens} asked for, after the held-out "
            f"documents{_and_copies(pool)} ({counts}). Set "
            f"data.tokens to {usable} or less, or leave it out for everything in a local source."
        )


def _of_copies(counts: Counts, pool: HeldOutPool) -> str:
    """How many texts there are, while the pool has all of them, where some come more than once."""
    return f" in {pool.documents} different texts of {counts.documents}" if pool.copies else ""


def _and_copies(pool: HeldOutPool) -> str:
    return f" and {pool.copies} copies of them" if pool.copies else ""


def describe_rows(rows: TextRows, *, spread: bool) -> dict[str, Any]:
    """What the index says of held-out rows: bytes of text a row and, where they are `spread` over documents, the places
    in the rows, as one list, at which the tokens of another document begin: [place, its number]."""
    flat = rows.documents.ravel()
    found = {"documents": len(np.unique(flat)), "bytes": rows.text_bytes}
    places = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist()] if len(flat) else []
    return {**found, "parts": [[place, int(flat[place])] for place in places]} if spread else found


def make_index(
    config: DataConfig,
    content: Mapping[str, Any],
    framing: Mapping[str, Any],
    instructions: Mapping[str, Any] | None,
    counts: Counts,
    pool: HeldOutPool,
    source: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """index.json: the store's content and its fingerprint, what was read and skipped, and the manifest."""
    skipped = dataclasses.asdict(counts)
    of_rows = {name: skipped.pop(name) for name in ("no_answer", "too_long", "cut")}
    near = {"heldout_near_copies": pool.near_copies} if pool.alike == "normalised" else {}
    return {
        "format": FORMAT,
        "fingerprint": fingerprint_of(content),
        **content,
        "framing": dict(framing),
        **({} if instructions is None else {"instructions": {**instructions, **of_rows}}),
        "documents": skipped.pop("documents"),
        "text_bytes": skipped.pop("text_bytes"),
        "skipped": {**skipped, "heldout_copies": pool.copies, **near},
        "identity": identity(config, content["tokenizer_sha256"]),
        "source": dict(source),
        "manifest": manifest(
            config=to_dict(config),
            inputs={
                "tokenizer": content["tokenizer_sha256"],
                "source": _content_sha256(source),
                **({} if instructions is None else {"chat template": instructions["template_sha256"]}),
            },
            outputs=hashes_of(content),
            seconds=seconds,
        ),
    }


def _content_sha256(source: Mapping[str, Any]) -> str:
    """The fingerprint of a source without the times of change of its files."""
    files = [{k: v for k, v in entry.items() if k != "mtime_ns"} for entry in source.get("files", [])]
    return sha256_json({**source, "files": files})
