"""Options of a cache of the teacher's signals."""

from typing import Annotated, Literal

from pydantic import Field

from compress.base.config import config
from compress.base.currency import FREE, Before

_K, _DRAWS = 8, 50


@config
class CacheConfig:
    """What is kept of the teacher for each token of a store, so that training runs it no more: {kind: hidden}."""

    kind: Literal["hidden", "samples", "topk"] = "hidden"
    """hidden: the last hidden state, with the output head once: a training from it is the live one, bit for bit.
    samples: tokens drawn from its distribution, a tenth of the bytes or less; gradients of forward KL have the
    expectation of the live ones. topk: its most likely tokens, for comparison: the rest is missing, a bias."""
    rows: Annotated[Literal["exact", "int8"], Before("exact")] = "exact"
    """Of `hidden`: as the teacher has them, or rounded to 8 bits, a scale for every 32: what that changes is measured
    on held-out rows and refused above `teacher_max_kl`."""
    draws: Annotated[int, Field(ge=1, le=255)] = _DRAWS
    """Of `samples`: how often a token is drawn."""
    k: Annotated[int, Field(ge=1, le=1024)] = _K
    """Of `topk`: how many tokens are kept, 6 bytes each."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of `samples`: what the draws depend on, with the number of a row."""
    folder: Annotated[str | None, FREE] = None
    """Where the cache lies, for several runs to share; by default in the run's folder, as teacher-cache."""

    def __post_init__(self) -> None:
        for name, kind, default in (
            ("rows", "hidden", "exact"),
            ("draws", "samples", _DRAWS),
            ("seed", "samples", 0),
            ("k", "topk", _K),
        ):
            if self.kind != kind and getattr(self, name) != default:
                raise ValueError(f"`{name}` is of kind: {kind}, and this is {self.kind}; leave it out")
