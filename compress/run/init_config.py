"""What `compress init` can be asked. Nothing here imports torch: a command starts by reading this."""

import re
from typing import Annotated

from pydantic import Field

from compress.base.config import config
from compress.base.units import Count
from compress.run.best import DATA

_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*%")


@config
class InitConfig:
    """How small the student is to be (one of `speedup`, `keep_score` and `layers`), and what it is healed on."""

    speedup: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None
    """How many times fewer FLOPs a token is to cost, which is an estimate of the speed. When nothing is asked for it is
    1.5, and no fewer than half of the layers stay."""
    keep_score: str | None = None
    """SHARE: How much of the teacher's score above chance to keep, e.g. 95%: as large a share of the layers stays. That
    is a rule of thumb and no forecast."""
    layers: Annotated[Count, Field(ge=1)] | None = None
    """How many layers stay."""
    data: str = DATA
    """SOURCE: Text to heal on: `hub:ORG/NAME[:CONFIG]`, or a local file, folder or glob."""
    hours: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Hours that this device may heal; they decide the tokens."""

    def __post_init__(self) -> None:
        if sum(asked is not None for asked in (self.speedup, self.keep_score, self.layers)) > 1:
            raise ValueError("write one of `speedup`, `keep_score` and `layers`: each says how many layers stay")
        if self.keep_score is not None and not 0 < self.share < 1:
            raise ValueError("`keep_score` is a share between 0% and 100%: write 95%")

    @property
    def share(self) -> float:
        """`keep_score` as a fraction; 0 where it is none."""
        match = _PERCENT.fullmatch(self.keep_score or "")
        return float(match[1]) / 100 if match else 0.0


@config
class InitOptions:
    """What `compress init` takes."""

    init: InitConfig = InitConfig()
