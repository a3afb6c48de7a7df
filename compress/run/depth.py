"""How many layers stay: named, or for a speed-up, or by a rule of thumb for a score."""

import math
from bisect import bisect_right
from functools import cache
from typing import Any

from compress.base.errors import CompressError, UsageError
from compress.model.costs import model_costs
from compress.model.facts import ModelFacts
from compress.prune.plan import derive
from compress.prune.rules.student_config import num_layers
from compress.run.best import LEAST_SHARE, SPEEDUP
from compress.run.init_config import InitConfig

CONTEXT = 1024
"""Tokens that the one whose cost a speed-up is about looks at."""


def choose_depth(known: ModelFacts, asked: InitConfig) -> tuple[int, str]:
    """How many layers stay, and why so many.

    Raises:
        UsageError: there is nothing to drop, or the speed-up is out of reach.
    """
    total = num_layers(known.config)
    if total == 1 or (asked.layers or 0) >= total:
        raise UsageError(f"{known.name} has {total} layers: name fewer that stay with --layers.")
    if asked.layers is not None:
        return asked.layers, f"of {total}, as you said"
    if asked.keep_score is not None:
        guess = f"a guess, that {asked.keep_score} of the layers keep that share of the score; see what the report says"
        return min(total - 1, math.ceil(asked.share * total)), f"of {total}: {guess}"
    least = 0 if asked.speedup is not None else math.ceil(LEAST_SHARE * total)
    speedup = asked.speedup or SPEEDUP
    depth = _fast_enough(known, total, speedup)
    if depth >= max(1, least):
        return depth, f"of {total}: the most with which a token costs 1/{speedup:g} of the teacher's FLOPs"
    if least:
        return least, f"of {total}: half; {speedup:g}x would take more than a short healing brings back"
    raise UsageError(
        f"--speedup {speedup:g}: even one layer of {known.name} costs more, as embeddings and head are the rest. Ask "
        "for less, or name --layers."
    )


def _fast_enough(known: ModelFacts, total: int, speedup: float) -> int:
    """The most layers with which a token costs at most a `speedup`-th of the teacher's FLOPs; 0 if one is too many."""
    before = token_cost(known.config)

    @cache
    def gained(layers: int) -> float:
        try:
            return before / token_cost(derive(known.name, known.side, f"contiguous:{layers}").student)
        except CompressError:  # this type cannot be cut so far: that would be fast enough, and is refused later
            return math.inf

    return bisect_right(range(1, total), -speedup, key=lambda layers: -gained(layers))


def token_cost(config: Any) -> float:
    """FLOPs of a token that looks at `CONTEXT`."""
    return model_costs(config).decode_flops(CONTEXT)
