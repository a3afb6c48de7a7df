"""The framing of a token store: what was asked for, and whether a model reads text as the store has it."""

import dataclasses
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from compress.base.disk import sha256_json
from compress.base.errors import InputError, UsageError
from compress.base.progress import say
from compress.data.sources.stream import Item
from compress.data.store.encode import DocumentEncoder
from compress.data.store.store import TokenStore
from compress.inference.framing import ROW_TOKENS, ROWS, StartLoss, describe, framing_in, own_framing
from compress.model.files import model_fingerprint
from compress.model.framing import Framing
from compress.model.load import load_tokenizer
from compress.model.tokenizer import TokenizerSpec, load_spec

_LOOK_AT_ROWS, _LOOK_AT_TOKENS = 500, 2048
_WRONG_NATS = 0.25
"""What a token loses in rows that are framed for another model; less is no reason to refuse a store."""


def asked_framing(bos: Literal["auto", "always", "never"], spec: TokenizerSpec) -> Framing:
    """The framing that `data.bos` asks for; with `auto` the tokenizer's own.

    Raises:
        UsageError: BOS is to stand before all, and the tokenizer has none.
    """
    if bos == "always" and not spec.prefix:
        raise UsageError("data.bos: always needs a tokenizer with a BOS token, and this one has none. Leave it out.")
    return {"auto": own_framing(spec), "never": Framing(), "always": Framing(spec.prefix, spec.prefix)}[bos]


def decide_framing(
    items: Iterable[Item], spec: TokenizerSpec, reader: Path, encoder: DocumentEncoder
) -> tuple[Framing, dict[str, Any] | None]:
    """How the model in the folder `reader` reads the first of these documents best, which is said, and what an index
    tells of that; see `framing_in`."""
    documents: dict[str, NDArray[Any]] = {}
    if spec.prefix:
        for item in islice(items, _LOOK_AT_ROWS):
            if item.is_document and (text := item.row.text or "") not in documents:
                documents[text] = encoder.bare(text)[:_LOOK_AT_TOKENS]
            if sum(len(ids) >= ROW_TOKENS for ids in documents.values()) >= ROWS:
                break
    framing, found = framing_in(reader, spec, list(documents.values()))
    if found is not None or framing.rows:
        say(describe(framing, found, load_tokenizer(reader)))
    if found is None:
        return framing, None
    return framing, {"reader": model_digest(reader), **dataclasses.asdict(found)}


def model_digest(folder: Path) -> str:
    """What names a model in a store's index."""
    return sha256_json(model_fingerprint(folder))


def check_framing(store: TokenStore, reader: Path) -> None:
    """Refuse a store whose framing makes the model in `reader`, which is to be learned from, read text badly.

    Nothing is measured on a model that the store was framed for, nor against what `data.bos` asked for.

    Raises:
        InputError: its documents begin otherwise than this model's tokenizer begins a text, or its rows do not begin as
            this model reads them better.
    """
    if store.marked:
        return  # conversations, which a template framed
    spec, asked = load_spec(reader), store.index["manifest"]["config"].get("bos", "auto")
    decided = (store.index.get("framing") or {}).get("decided")
    if not spec.prefix or asked != "auto" or (decided and decided["reader"] == model_digest(reader)):
        return
    framing = store.framing or Framing()
    if store.framing is not None and framing.documents != own_framing(spec).documents:
        raise InputError(
            f"The documents of {store.path} begin with the token ids {list(framing.documents)}, and the tokenizer of "
            f"{reader} begins a text with {list(own_framing(spec).documents)}: the store was made for another model. "
            "Prepare the text with this one."
        )
    count = min(ROWS, store.num_heldout or store.num_rows)
    rows = store.heldout(count) if store.num_heldout else store.rows(range(count))
    texts = [row[np.isin(row, (*spec.prefix, spec.eos_id), invert=True)][:ROW_TOKENS] for row in rows]
    best, found = framing_in(reader, spec, texts)
    if found is not None and best.rows != framing.rows and abs(found.gain) > _WRONG_NATS:
        raise InputError(_unlike(store, reader, found))


def _unlike(store: TokenStore, reader: Path, found: StartLoss) -> str:
    begun = "BOS" if found.gain > 0 else "no BOS"
    return (
        f"The rows of {store.path} are framed for another model: {reader} wants {begun} at their start (a token costs "
        f"{found.with_prefix:.2f} nats after it and {found.without:.2f} without). Prepare the text with this model, or "
        "with data.bos as it is meant."
    )
