"""How text is framed for a model: what its documents, and rows of text that begin anywhere, begin with."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Framing(NamedTuple):
    """Token ids that come first; nothing where they are empty. EOS ends each document in any case."""

    documents: tuple[int, ...] = ()
    """Before each document: what the tokenizer's own encoding puts there."""
    rows: tuple[int, ...] = ()
    """Before each row: what the model reads better with, wherever in a document the row begins."""


def prefix_of(tokenizer: Any) -> tuple[tuple[int, ...], bool]:
    """Token ids that a text may begin with, and whether the tokenizer's own encoding puts them there.

    What it does not put there is its BOS token, where it has one.
    """
    whole, bare = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (True, False))
    start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    if bare and start:
        return tuple(whole[:start]), True
    return (() if tokenizer.bos_token_id is None else (int(tokenizer.bos_token_id),)), False


def begun(ids: list[int], prefix: tuple[int, ...]) -> list[int]:
    """The ids after `prefix`, unless they begin with it."""
    return ids if tuple(ids[: len(prefix)]) == prefix else [*prefix, *ids]


def row_starts(ids: NDArray[Any], filled: int, seq_len: int, start: tuple[int, ...]) -> list[int]:
    """Places in a stream of ids [n] before which `start` belongs, so that each row of `seq_len` tokens begins with it.

    `filled` tokens of the first row are there already. A row that begins with it by itself gets no second one.
    """
    places: list[int] = []
    place = 0
    if not start:
        return places
    while place < len(ids):
        if filled == 0 and tuple(ids[place : place + len(start)].tolist()) != start:
            places.append(place)
            filled = len(start)
        step = min(seq_len - filled, len(ids) - place)
        place, filled = place + step, (filled + step) % seq_len
    return places


def with_starts(ids: NDArray[Any], places: list[int], start: tuple[int, ...]) -> NDArray[Any]:
    """The ids [n] with `start` before each of the places."""
    return np.insert(ids, np.repeat(places, len(start)), np.tile(start, len(places))) if places else ids
