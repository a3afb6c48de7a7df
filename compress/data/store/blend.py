"""A blend: the token stores of several sources under one index, in `OUT/source-0/`, `OUT/source-1/` and so on.

It is a token store like any other, whose rows are those of its sources one after the other: the order of a training
mixes them, as it does the rows of one source. Each row is of one source, and the index says of which.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.base.config import to_dict
from compress.base.disk import fsync_path, sha256_file, sha256_json
from compress.base.records import manifest
from compress.data.config import DataConfig
from compress.data.store.index import FORMAT, fingerprint_of, hashes_of
from compress.data.store.layout import TextRows
from compress.data.store.marks import of_text
from compress.data.store.record import describe_rows, identity
from compress.data.store.shards import write_rows
from compress.data.store.store import TokenStore

KIND = "blend"
_FOLDER = "source-{}"
_COUNTS = ("documents", "text_bytes")
_OF_CONVERSATIONS = ("no_answer", "too_long", "cut")


def part_folder(out: Path, number: int) -> Path:
    """Where a blend has the store of its source of that number."""
    return out / _FOLDER.format(number)


def join(folder: Path, config: DataConfig, tokenizer_sha256: str, seconds: float) -> dict[str, Any]:
    """Write what the finished stores of a blend's sources in `folder` have in common, and return its index.

    Held-out rows are copied, in turns from each source. Where some sources hold conversations, rows of the others get
    marks too: all of a text is learned.
    """
    stores = [TokenStore.open(part_folder(folder, number)) for number in range(len(config.names))]
    marked = any(store.marked for store in stores)
    shards = [_shard(store, shard, marked=marked) for store in stores for shard in store.index["train"]["shards"]]
    content = {
        **{name: stores[0].index[name] for name in ("seq_len", "dtype", "vocab_size", "eos_id", "tokenizer_sha256")},
        "train": {"rows": sum(store.num_rows for store in stores), "shards": shards},
        "heldout": _write_heldout(folder, stores, marked=marked),
    }
    indexes = [store.index for store in stores]
    skipped = [index["skipped"] for index in indexes]
    source = blended_source([index["source"] for index in indexes])
    inputs = {"tokenizer": tokenizer_sha256, "source": blended_sha256(indexes), **_template(indexes)}
    return {
        "format": FORMAT,
        "fingerprint": fingerprint_of(content),
        **content,
        "framing": next((index["framing"] for index in indexes if "instructions" not in index), indexes[0]["framing"]),
        **({"instructions": _instructions(indexes)} if marked else {}),
        "sources": [_entry(name, store) for name, store in zip(config.names, stores, strict=True)],
        **{name: sum(index[name] for index in indexes) for name in _COUNTS},
        "skipped": {
            name: sum((each[name] for each in skipped), start=type(value)()) for name, value in skipped[0].items()
        },
        "identity": identity(config, tokenizer_sha256),
        "source": source,
        "manifest": manifest(config=to_dict(config), inputs=inputs, outputs=hashes_of(content), seconds=seconds),
    }


def blended_source(sources: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What an index says of where a blend's text lies, from what those of its sources say."""
    return {"kind": KIND, "sources": list(sources)}


def parts_of(source: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What an index says of each place that text lies at, from what it says under `source`."""
    found: list[Mapping[str, Any]] = source["sources"] if source.get("kind") == KIND else [source]
    return found


def blended_sha256(indexes: Sequence[Mapping[str, Any]]) -> str:
    """What names the text of a blend, from the indexes of its sources' stores."""
    return sha256_json([index["manifest"]["inputs"]["source"] for index in indexes])


def _entry(name: str, store: TokenStore) -> dict[str, Any]:
    return {
        "name": name,
        "folder": store.path.name,
        "rows": store.num_rows,
        "heldout_rows": store.num_heldout,
        "documents": store.index["documents"],
        "fingerprint": store.fingerprint,
    }


def _template(indexes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    found = [index["manifest"]["inputs"].get("chat template") for index in indexes]
    return {"chat template": next(filter(None, found))} if any(found) else {}


def _instructions(indexes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the index of the blend says of its conversations: as the first source of them, with the counts of all."""
    found = [index["instructions"] for index in indexes if "instructions" in index]
    return {**found[0], **{name: sum(each[name] for each in found) for name in _OF_CONVERSATIONS}}


def _shard(store: TokenStore, shard: Mapping[str, Any], *, marked: bool) -> dict[str, Any]:
    """The blend's entry of a shard of a source; its marks are written where only other sources have some."""
    marks = shard.get("marks")
    if marked and marks is None:
        path = (store.path / shard["file"]).with_suffix(".marks")
        with path.open("wb") as file:
            for block in store.blocks(shard):
                file.write(of_text(block, store.eos_id).tobytes())
        fsync_path(path)
        marks = {"file": path.name, "sha256": sha256_file(path)}
    placed = {"file": f"{store.path.name}/{shard['file']}", "rows": shard["rows"], "sha256": shard["sha256"]}
    return placed if marks is None else placed | {"marks": {**marks, "file": f"{store.path.name}/{marks['file']}"}}


def _write_heldout(folder: Path, stores: Sequence[TokenStore], *, marked: bool) -> dict[str, Any]:
    """Held-out rows of all sources, in turns, so that the first few are of each."""
    counts = [store.num_heldout for store in stores]
    sources = np.concatenate([np.full(count, number) for number, count in enumerate(counts)])
    turns = np.lexsort((sources, np.concatenate([np.arange(count) for count in counts])))
    if not len(turns):
        return {"rows": 0}
    documents, first = [], 0
    for store in stores:
        numbers = store.heldout_documents()
        documents.append(numbers + first)
        first += int(numbers.max(initial=-1)) + 1
    marks = [_heldout_marks(store) for store in stores] if marked else None
    rows = TextRows(
        np.concatenate([store.heldout() for store in stores])[turns].astype(np.uint32),
        np.concatenate([store.index["heldout"].get("bytes", []) for store in stores])[turns].astype(int).tolist(),
        np.concatenate(documents)[turns],
        None if marks is None else np.concatenate(marks)[turns],
    )
    entry = write_rows(folder, "heldout", rows, stores[0].dtype)
    return {**entry, **describe_rows(rows, spread=True), "sources": sources[turns].tolist()}


def _heldout_marks(store: TokenStore) -> NDArray[np.uint8]:
    """[n, S] marks as they are stored."""
    rows = store.heldout()
    if not store.marked or not len(rows):
        return of_text(rows, store.eos_id)
    return np.fromfile(store.path / store.index["heldout"]["marks"]["file"], dtype=np.uint8).reshape(rows.shape)
