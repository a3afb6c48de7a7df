"""The whole of what `compress merge` can be asked."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from compress.base.config import config

Method = Literal["linear", "slerp", "ties", "important"]
TASK_VECTORS = ("ties", "important")
"""Methods that merge what each model changed of a base."""
_TIES_DENSITY = 0.2


def _number(value: Any) -> Any:
    """A number as a command line gives it."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


Weight = Annotated[float, Field(gt=0), BeforeValidator(_number)]


@config
class MergeConfig:
    """How models are merged."""

    method: Method = "linear"
    """METHOD: How the weights are put together; docs/merging.md has the equations."""
    weights: tuple[Weight, ...] | None = None
    """What each model counts, in their order, e.g. 2,1; only their ratio matters. By default all the same."""
    base: str | None = None
    """MODEL: The model that all of them began with, for ties and important."""
    density: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of each tensor's changes that is kept, with ties and important. By default 0.2 with ties; with important
    those whose importance stands out: above the median by more than 1.5 interquartile ranges."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """What the merged change is multiplied by before it is put on the base, with ties and important."""

    def __post_init__(self) -> None:
        if self.method in TASK_VECTORS and self.base is None:
            raise ValueError(f"{self.method} merges what each model changed: name the `base` that they began with")
        if self.method not in TASK_VECTORS:
            given = {"base": self.base is not None, "density": self.density is not None, "scale": self.scale != 1.0}
            if unused := [name for name, is_given in given.items() if is_given]:
                raise ValueError(f"{self.method} knows no {' and '.join(unused)}: leave out what it does not use")
        if self.method == "slerp" and self.weights is not None and len(self.weights) != 2:
            raise ValueError("slerp is between two models, so it has two `weights`")

    @property
    def kept(self) -> float | None:
        """The share of changes that is kept; None where their importance decides."""
        return _TIES_DENSITY if self.density is None and self.method == "ties" else self.density
