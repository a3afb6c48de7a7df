"""Options of what is trained of the student: all of it, some of its parts, or adapters beside its frozen weights."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from compress.base.config import config
from compress.base.currency import Before

_PARTS = ("whole", "seams", "norms", "no_embeddings")
_LAST = re.compile(r"last:([1-9][0-9]{0,8})")


def _parts(text: str) -> str:
    if text not in _PARTS and not _LAST.fullmatch(text):
        raise ValueError(f"write {', '.join(_PARTS)}, or last:4 for the last four blocks")
    return text


@config
class LoraConfig:
    """Low-rank adapters (Hu et al., arXiv:2106.09685) of linear maps: W + (alpha / r) B A, of which A and B learn."""

    r: Annotated[int, Field(ge=1)] = 16
    """Rows of A and columns of B."""
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 32.0
    """Divided by r, what B A is multiplied by."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an adapter's input that is left out at random in training."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Which linear maps of the blocks have adapters, by the ends of their names: [q_proj, v_proj]; None is all."""
    dora: bool = False
    """Learn the length of each row of W + (alpha / r) B A as well (DoRA, arXiv:2402.09353)."""
    base_precision: Literal["auto", "int8", "nf4"] = "auto"
    """auto is the run's. int8, nf4 (QLoRA, arXiv:2305.14314): frozen linear maps in 8 or 4 bits, on GPUs (needs
    bitsandbytes). Adapters are merged into the weights as the checkpoint has them."""


@config
class StudentConfig:
    """What of the student is trained. What is not has no gradient, no moments and no fp32 master weights."""

    train: Annotated[Annotated[str, AfterValidator(_parts)], Before("whole")] = "whole"
    """PARTS: What learns: whole; seams, the block before each gap that a cut left and the norms after it; last:K, the
    last K blocks and the final norm; norms; no_embeddings, all but embeddings and output head."""
    lora: Annotated[LoraConfig | None, Before(None)] = None
    """Train adapters in place of the weights, and merge them in the end: {r: 16, alpha: 32}; {} takes the defaults."""

    def __post_init__(self) -> None:
        if self.lora is not None and self.train != "whole":
            raise ValueError(f"lora trains adapters, and train: {self.train} weights of the student; leave one out")

    @property
    def is_whole(self) -> bool:
        """Whether all of the student's own weights are trained."""
        return self.train == "whole" and self.lora is None

    @property
    def last_blocks(self) -> int | None:
        """K of `train: last:K`."""
        match = _LAST.fullmatch(self.train)
        return None if match is None else int(match[1])
