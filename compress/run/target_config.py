"""What a recipe's `target` can ask. Nothing here imports torch: a command starts by reading this."""

import dataclasses
import re
from collections.abc import Callable
from typing import Annotated

from pydantic import BeforeValidator, Field

from compress.base.config import config
from compress.base.units import parse_bytes, parse_count, percent_as_share
from compress.prune import PruneConfig
from compress.prune.parts import AtLeastOne, Method

_TIMES = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*[x×]", re.IGNORECASE)


def _size(parse: Callable[[str], int]) -> Callable[[object], object]:
    def read(value: object) -> object:
        if isinstance(value, str):
            match = _TIMES.fullmatch(value.strip())
            return float(match[1]) if match else parse(value)
        return value

    return read


def _times(value: object) -> object:
    match = _TIMES.fullmatch(value.strip()) if isinstance(value, str) else None
    return float(match[1]) if match else value


@config
class TargetConfig:
    """What the student is to be: its size or speed, which says how many layers stay; what it is to keep, which says
    when its training may end."""

    params: Annotated[float, BeforeValidator(_size(parse_count)), Field(gt=0)] | None = None
    """Parameters at most: `80M`, or `0.6x` of the teacher's."""
    bytes: Annotated[float, BeforeValidator(_size(parse_bytes)), Field(gt=0)] | None = None
    """Bytes of weights at most, in the dtype that the cut is stored in: `200MB`, or `0.6x` of the teacher's."""
    decode_speedup: Annotated[float, BeforeValidator(_times), Field(gt=1, allow_inf_nan=False)] | None = None
    """How many times as fast as the teacher it writes: `1.5x`, as the speed of `eval` is measured. Two depths are timed
    before the run begins."""
    kept: Annotated[float, BeforeValidator(percent_as_share), Field(gt=0, le=1)] | None = None
    """Share of the teacher's score above chance, `95%`, on the items of `eval.during`: training ends once the lower end
    of its 95% interval is that much."""
    by: Method = "kl-greedy"
    """METHOD: Measure of how much a layer matters, by which those that stay are chosen."""
    rank_after: AtLeastOne | None = None
    """Choose them by healing candidate cuts on so many tokens instead, as `prune.rank_after`."""
    layers: AtLeastOne | None = None
    """How many layers stay so: found before a run begins, and written into its recipe."""

    def __post_init__(self) -> None:
        sizes = [name for name in ("params", "bytes", "decode_speedup") if getattr(self, name) is not None]
        if len(sizes) > 1:
            raise ValueError(f"{' and '.join(sizes)} each say how many layers stay; write one of them")
        if not sizes and self.kept is None:
            raise ValueError("write what is to be reached: params, bytes or decode_speedup, and kept")
        if not sizes and (self.layers is not None or self.rank_after is not None):
            raise ValueError("a cut is chosen for a size: write params, bytes or decode_speedup")

    @property
    def sizes_the_cut(self) -> bool:
        """Whether it says how many layers stay."""
        return any(asked is not None for asked in (self.params, self.bytes, self.decode_speedup))

    def cut(self, prune: PruneConfig) -> PruneConfig:
        """How to cut, once it is known how many layers stay; as asked for where this says nothing of it."""
        if self.layers is None:
            return prune
        by = None if self.rank_after is not None else self.by
        return dataclasses.replace(prune, keep=None, layers=self.layers, by=by, rank_after=self.rank_after)
