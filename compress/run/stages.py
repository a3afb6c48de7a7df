"""A chain: cut, heal, cut again. What each stage does, by the recipe's `prune` and `distill` and by its own options."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from compress.base.config import config
from compress.distill import DistillConfig
from compress.distill.config import AboveZero, DivergenceConfig, DivergenceName, Fraction, PositiveCount, Schedule
from compress.prune import PruneConfig
from compress.prune.choose.spec import check_spec
from compress.prune.parts import AtLeastOne, Method

_BY: Method = "kl-greedy"
_HEALING = ("tokens", "epochs", "batch_tokens", "lr", "alpha", "temperature", "divergence")


@config
class StageConfig:
    """One stage: a cut of the student before (the first of the teacher), or the last cut anew, and its healing.

    What it does not name is as the recipe's `prune` and `distill` say.
    """

    keep: str | None = None
    """SPEC of the layers that stay, of those that the student before has; as `prune.keep`."""
    layers: AtLeastOne | None = None
    """How many layers stay, those that matter most `by` a measure."""
    by: Method | None = None
    """METHOD: Measure of how much a layer matters; kl-greedy where it is not written."""
    repair: bool | None = None
    """As `prune.repair`."""
    teacher: Literal["original", "previous", "self"] = "original"
    """Who teaches: the run's teacher, or the student of the stage before. self: that student too, of a stage without a
    cut, which starts again from the last cut (born again, Furlanello et al. 2018, arXiv 1805.04770)."""
    tokens: PositiveCount | None = None
    epochs: AtLeastOne | None = None
    batch_tokens: PositiveCount | None = None
    lr: AboveZero | None = None
    alpha: Fraction | Schedule | None = None
    temperature: AboveZero | Schedule | None = None
    divergence: DivergenceName | DivergenceConfig | None = None
    """These as in `distill`."""

    def __post_init__(self) -> None:
        if self.keep is not None and (self.layers is not None or self.by is not None):
            raise ValueError("`keep` names the layers and `by` measures them; write one of the two")
        if self.by is not None and self.layers is None:
            raise ValueError("`by` measures layers: write how many stay, `layers`, too")
        if self.keep is not None:
            check_spec(self.keep)
        if not self.cuts and self.teacher != "self":
            raise ValueError(
                "it cuts nothing: write `keep` or `layers`; or `teacher: self`, for the student before to teach the "
                "last cut anew"
            )
        if self.cuts and self.teacher == "self":
            raise ValueError("`self` teaches the last cut anew: leave `keep` and `layers` out, or write `previous`")
        if self.repair is not None and not self.cuts:
            raise ValueError("`repair` mends a cut, and it cuts nothing: leave it out")

    @property
    def cuts(self) -> bool:
        """Whether layers are dropped."""
        return self.keep is not None or self.layers is not None


def _begins_with_a_cut(stages: tuple[StageConfig, ...]) -> tuple[StageConfig, ...]:
    if stages and (not stages[0].cuts or stages[0].teacher != "original"):
        raise ValueError("there is no student before the first stage: give it a cut, and leave its `teacher` out")
    return stages


StageConfigs = Annotated[tuple[StageConfig, ...], AfterValidator(_begins_with_a_cut)]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One cut and its healing, of one in a recipe without `stages`."""

    number: int
    """From 1 on."""
    last: bool
    """What it leaves is the run's own."""
    prune: PruneConfig | None
    """None where it cuts nothing."""
    distill: DistillConfig
    teacher: Literal["original", "previous", "self"] = "original"
    cut: int = 1
    """The stage that makes the cut that is healed."""

    def step(self, name: str) -> str:
        """What its `prune` or `distill` is called: so, or prune-1 of an earlier stage."""
        return name if self.last else f"{name}-{self.number}"

    @property
    def place(self) -> int | None:
        """The number that its folder has in RUN/stages; None of the last, which has the run's."""
        return None if self.last else self.number


def chain(stages: Sequence[StageConfig], prune: PruneConfig | None, distill: DistillConfig) -> tuple[Stage, ...]:
    """The stages of a recipe with these sections, or its one cut (none of a given student) and healing.

    Each stage reads the rows in an order of its own: its seed is the recipe's and the number of stages before it.

    Raises:
        ValueError: options that exclude each other.
    """
    if not stages:
        return (Stage(1, True, prune, distill),)
    assert prune is not None
    found: list[Stage] = []
    for number, asked in enumerate(stages, start=1):
        cut = _cut(asked, prune) if asked.cuts else None
        own = {name: getattr(asked, name) for name in _HEALING if getattr(asked, name) is not None}
        healing = dataclasses.replace(distill, seed=distill.seed + number - 1, **own)
        made_by = number if cut is not None else found[-1].cut
        found.append(Stage(number, number == len(stages), cut, healing, asked.teacher, made_by))
    return tuple(found)


def _cut(asked: StageConfig, prune: PruneConfig) -> PruneConfig:
    own: dict[str, Any] = {"keep": asked.keep, "layers": asked.layers}
    own["by"] = None if asked.layers is None else asked.by or _BY
    if asked.repair is not None:
        own["repair"] = asked.repair
    return dataclasses.replace(prune, **own)


def names_layers(prune: PruneConfig) -> bool:
    """Whether a recipe's `prune` says which layers stay, which in a chain each stage says."""
    return prune.choice != PruneConfig().choice
