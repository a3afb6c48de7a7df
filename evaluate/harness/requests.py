"""Token ids of lm-eval's requests: those of its own `_encode_pair`, from batched calls of the tokenizer."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval.models.utils import _add_special_kwargs, has_bos_prefix

from compress.base.progress import progress_bar
from compress.base.signals import check_interrupt
from compress.inference.tree import Ids
from compress.model.framing import begun

_BLOCK = 1024
_BAR_FROM_PAIRS = 4096
_NOTHING = np.empty(0, np.int64)


@dataclasses.dataclass(frozen=True)
class Asked:
    """A token sequence to run once, and the requests it is for: their places in lm-eval's list."""

    ids: Ids
    requests: list[int]


def distinct(sequences: Mapping[int, Ids]) -> list[Asked]:
    """The distinct sequences of the requests that `sequences` has one for, in the order of their first."""
    found: dict[bytes, Asked] = {}
    for request, ids in sequences.items():
        found.setdefault(ids.tobytes(), Asked(ids, [])).requests.append(request)
    return list(found.values())


def ids_of(rows: Sequence[Sequence[Asked]]) -> list[list[Ids]]:
    """The token ids of sequences in rows."""
    return [[each.ids for each in row] for row in rows]


def encode_pairs(lm: Any, pairs: Sequence[tuple[str, str]], prefix: tuple[int, ...] = ()) -> list[tuple[Ids, Ids]]:
    """(context ids, continuation ids) of each (context, continuation): those of lm-eval's `TemplateLM.loglikelihood`.

    White space that ends a context belongs to its continuation. Context and continuation are encoded as one string, and
    cut where the context's own encoding ends: their tokens may merge across the boundary. Nothing before a continuation
    is the prefix token (BOS, else EOS), unless the continuation begins with it. `lm` is an lm-eval `HFLM`. Before each
    context comes `prefix`, unless it begins with it.
    """
    encoded: list[tuple[Ids, Ids]] = []
    with progress_bar("Tokenizing", len(pairs), unit="texts", visible=len(pairs) >= _BAR_FROM_PAIRS) as bar:
        for start in range(0, len(pairs), _BLOCK):
            check_interrupt()
            block = pairs[start : start + _BLOCK]
            encoded += _encode_block(lm, block, prefix)
            bar.advance(len(block))
    return encoded


def _encode_block(lm: Any, pairs: Sequence[tuple[str, str]], prefix: tuple[int, ...]) -> list[tuple[Ids, Ids]]:
    moved = [_move_space(context, continuation) for context, continuation in pairs]
    chosen = [texts for texts, (context, _) in zip(moved, pairs, strict=True) if context]
    texts = [text for context, continuation in chosen for text in (context, context + continuation)]
    ids = encode(lm, texts, prefix=prefix)
    alone = encode(lm, [continuation for context, continuation in pairs if not context], add_special_tokens=False)
    encoded = []
    for (context, continuation), (kept, added) in zip(pairs, moved, strict=True):
        before = ids[kept] if context else _NOTHING
        after = ids[kept + added][len(before) :].copy() if context else alone[continuation]
        if not len(before):
            before = np.array([lm.prefix_token_id])
            after = after[1:] if after[:1] == before else after
        encoded.append((before, after))
    return encoded


def encode(
    lm: Any, strings: Iterable[str], *, add_special_tokens: bool | None = None, prefix: tuple[int, ...] = ()
) -> dict[str, Ids]:
    """`lm.tok_encode(string)` of each distinct string, after `prefix` unless it begins with that."""
    distinct = list(dict.fromkeys(strings))
    beginning = lm.tokenizer.decode(lm.prefix_token_id)
    marked = [add_special_tokens is None and has_bos_prefix(string, beginning) for string in distinct]
    found: dict[str, Ids] = {}
    for begins_with_bos in (False, True):
        options = _add_special_kwargs(False if begins_with_bos else add_special_tokens, lm.add_bos_token)
        chosen = [string for string, mark in zip(distinct, marked, strict=True) if mark is begins_with_bos]
        if chosen:
            rows = lm.tokenizer(chosen, return_attention_mask=False, return_token_type_ids=False, **options)
            pairs = zip(chosen, rows["input_ids"], strict=True)
            found |= {string: np.asarray(begun(row, prefix), np.int64) for string, row in pairs}
    return found


def _move_space(context: str, continuation: str) -> tuple[str, str]:
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation
