"""The whole of what `compress merge`, or a recipe's `merge:` section, can be asked."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from compress.base.config import config
from compress.base.currency import PLACE

RECORD = "merge.json"
Method = Literal["linear", "slerp", "ties", "important"]
_TIES_DENSITY = 0.2


def _number(value: Any) -> Any:
    """A number as a command line gives it."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


Weight = Annotated[float, Field(gt=0), BeforeValidator(_number)]


@config
class Merging:
    """How weights are put together."""

    method: Method = "linear"
    """METHOD: How the weights are put together; docs/merging.md has the equations."""
    weights: tuple[Weight, ...] | None = None
    """What each model counts, in their order, e.g. 2,1; only their ratio matters. By default all the same."""
    density: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of each tensor's changes that is kept, with ties and important. By default 0.2 with ties; with important
    those whose importance stands out: above the median by more than 1.5 interquartile ranges."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """What the merged change is multiplied by before it is put on the base, with ties and important."""

    def __post_init__(self) -> None:
        if not self.has_base:
            given = {"density": self.density is not None, "scale": self.scale != 1.0}
            if unused := [name for name, is_given in given.items() if is_given]:
                raise ValueError(f"{self.method} knows no {' and '.join(unused)}: leave out what it does not use")
        if self.method == "slerp" and self.weights is not None and len(self.weights) != 2:
            raise ValueError("slerp is between two models, so it has two `weights`")

    @property
    def has_base(self) -> bool:
        """Whether it merges what each model changed of a base."""
        return self.method in ("ties", "important")

    @property
    def kept(self) -> float | None:
        """The share of changes that is kept; None where their importance decides."""
        return _TIES_DENSITY if self.density is None and self.method == "ties" else self.density


@config
class MergeConfig(Merging):
    """How models are merged."""

    base: Annotated[str | None, PLACE] = None
    """MODEL: The model that all of them began with, for ties and important."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.has_base and self.base is None:
            raise ValueError(f"{self.method} merges what each model changed: name the `base` that they began with")
        if not self.has_base and self.base is not None:
            raise ValueError(f"{self.method} knows no base: leave out what it does not use")
