"""Which ids of a vocabulary stay."""

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.base.errors import UsageError
from compress.prune.trimming.config import TrimConfig
from compress.prune.trimming.definition import Definition


def check_size(config: TrimConfig, definition: Definition, always: Collection[int]) -> None:
    """Refuse a number of ids that the tokenizer cannot have.

    Raises:
        UsageError: it is less than those that stay `always`, or more than there are.
    """
    total, asked = len(definition.tokens), config.keep_tokens
    if asked is not None and not len(always) <= asked <= total:
        raise UsageError(
            f"keep_tokens = {asked}: {definition.name} has {total} tokens, of which {len(always)} always stay (special "
            f"tokens, the alphabet, what they are made of); write a number from {len(always)} to {total}."
        )


def choose_tokens(
    counts: NDArray[np.int64], definition: Definition, always: Collection[int], config: TrimConfig
) -> tuple[int, ...]:
    """The old ids that stay, increasing: those that `always` do, then the most frequent by their `counts` [ids], each
    with what it needs; last, unused ones from the lowest id on, until there are as many as asked for.

    Raises:
        UsageError: as `check_size`.
    """
    check_size(config, definition, always)
    kept, tokens = set(always), sorted(definition.tokens)
    used = sorted((token for token in tokens if counts[token]), key=lambda token: (-counts[token], token))
    _take(kept, used, definition, config.keep_tokens or len(tokens))
    size = config.keep_tokens or -(-len(kept) // config.multiple_of) * config.multiple_of
    _take(kept, tokens, definition, size)
    return tuple(sorted(kept))


def _take(kept: set[int], tokens: Iterable[int], definition: Definition, limit: int) -> None:
    """Add tokens in this order, each that fits with what it needs."""
    for token in tokens:
        if len(kept) >= limit:
            return
        if token not in kept:
            needed: set[Any] = definition.pieces.needs(token) - kept
            if len(kept) + len(needed) <= limit:
                kept |= needed
