"""Scores of a store's training rows and tokens, kept in the store: made in one pass, named by what they are made of.

    STORE/scores-KEY/rows.bin      float32 [rows]: the mean score of each row's tokens that are to be learned
    STORE/scores-KEY/tokens.bin    float16 [rows, S - 1]: the score of each token but a row's first, where they are
                                   kept; NaN of tokens that are not to be learned
    STORE/scores-KEY/index.json    what they are made of, and the SHA-256 of both files; written last

A pass that was cut goes on behind the rows that it has saved, and leaves the same bytes as one that was not.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.base.disk import (
    fsync_path,
    owned,
    publish_folder,
    read_json,
    sha256_file,
    sha256_json,
    unfinished,
    write_json,
)
from compress.base.errors import InputError
from compress.base.outputs import UNFINISHED, Output, has_only, require_outputs
from compress.base.progress import progress_bar, say
from compress.base.signals import check_interrupt
from compress.data.store.index import INDEX
from compress.data.store.store import TokenStore

SAVE_EVERY_S = 30.0
_STATE = "state.json"
_ROWS, _TOKENS = "rows.bin", "tokens.bin"
_NAMES = rf"(rows|tokens)\.bin|(state|index)\.json{UNFINISHED}"

Score = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""Scores [B, S - 1] of each token but the first of the rows with these numbers [B]: none below 0, NaN where the token
is not to be learned; each row has one that is."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of all training rows of a store."""

    path: Path
    rows: NDArray[np.float32]
    """[rows]"""
    tokens: NDArray[np.float16] | None
    """[rows, S - 1], NaN of tokens that are not to be learned, a memory map; None where they were not kept."""


def scores_folder(store: TokenStore, made_of: Mapping[str, Any]) -> Path:
    """Where in a store the scores lie that are made of this."""
    return store.path / f"scores-{sha256_json(made_of)[:16]}"


def open_scores(path: Path, store: TokenStore) -> Scores:
    """The finished scores in a folder.

    Raises:
        InputError: they are not there, or damaged.
    """
    index = read_json(path / INDEX)
    shapes = {_ROWS: ("<f4", (store.num_rows,)), _TOKENS: ("<f2", (store.num_rows, store.seq_len - 1))}
    maps: dict[str, NDArray[Any]] = {}
    for name, recorded in index["outputs"].items():
        kind, shape = shapes[name]
        if not (path / name).is_file() or sha256_file(path / name) != recorded:
            raise InputError(f"{path / name} is missing or damaged. Remove {path}: the scores are then made again.")
        maps[name] = np.memmap(path / name, dtype=kind, mode="r", shape=shape)
    return Scores(path, np.asarray(maps[_ROWS]), maps.get(_TOKENS))


def make_scores(
    store: TokenStore, made_of: Mapping[str, Any], score: Score, *, keep_tokens: bool, block_tokens: int
) -> Path:
    """Score all training rows, going on where an earlier process stopped; the folder of the finished scores.

    Rows of at most `block_tokens` tokens, at least one, are scored together, which decides the last bits.

    Raises:
        UsageError: another process is at it, or the store's folder cannot be written.
    """
    out = scores_folder(store, made_of)
    partial = unfinished(out)
    begun = Output(partial, "unfinished scores", has_only(_NAMES), folder=True)
    require_outputs(begun, Output(out, "scores", ours=None, folder=True))
    names = [_ROWS, _TOKENS] if keep_tokens else [_ROWS]
    with owned(partial):
        if not (partial / INDEX).is_file():
            _score_rows(store, score, partial, names, max(1, block_tokens // store.seq_len))
            outputs = {name: sha256_file(partial / name) for name in names}
            write_json(partial / INDEX, {"made_of": dict(made_of), "outputs": outputs})
        (partial / _STATE).unlink(missing_ok=True)
        publish_folder(partial, out)
    return out


def _score_rows(store: TokenStore, score: Score, folder: Path, names: list[str], block: int) -> None:
    """Write the scores of the rows that are left, `block` at a time."""
    state = folder / _STATE
    done = int(read_json(state)["rows"]) if state.is_file() else 0
    if done:
        say(f"Continuing the scores in {folder}: {done} of {store.num_rows} rows are done.")
    widths = {_ROWS: 4, _TOKENS: 2 * (store.seq_len - 1)}
    with contextlib.ExitStack() as opened:
        files = {name: opened.enter_context((folder / name).open("ab")) for name in names}
        for name, file in files.items():
            file.truncate(done * widths[name])  # what came after the last record may be of a block that was cut
        bar = opened.enter_context(progress_bar("Scoring rows", store.num_rows, unit="rows", done=done))

        def save() -> None:
            for name, file in files.items():
                file.flush()
                fsync_path(folder / name)
            write_json(state, {"rows": done})

        opened.callback(save)
        saved_at = time.monotonic()
        for start in range(done, store.num_rows, block):
            check_interrupt()
            found = score(np.arange(start, min(start + block, store.num_rows)))
            files[_ROWS].write(np.nanmean(found, axis=1, dtype=np.float64).astype("<f4").tobytes())
            if _TOKENS in files:
                files[_TOKENS].write(np.minimum(found, np.finfo(np.float16).max).astype("<f2").tobytes())
            done = start + len(found)
            bar.advance(len(found))
            if time.monotonic() - saved_at >= SAVE_EVERY_S:
                save()
                saved_at = time.monotonic()
