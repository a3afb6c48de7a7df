"""The whole of what `compress prune`, or a recipe's `prune:` section, can be asked."""

import dataclasses
from collections.abc import Collection
from typing import Annotated, TypedDict, TypeVar

from compress.base.config import config
from compress.base.currency import Before
from compress.base.units import Count, CountOrShare
from compress.prune.choose.candidates import RankAfterConfig, check_request
from compress.prune.choose.spec import PATTERN, check_spec
from compress.prune.parts import AtLeastOne, ExpertsConfig, Method, RankingConfig, RepairConfig, StorageConfig

C = TypeVar("C")


class How(TypedDict):
    """How a student is made, whichever layers stay: keyword arguments of `prune` and `prune_settings`."""

    check: bool
    repair: RepairConfig | None
    storage: StorageConfig
    experts: ExpertsConfig | None


@config
class PruneConfig(RepairConfig, StorageConfig):
    """Which layers stay, by name (`keep`), by measure (`layers` and `by`) or by trial (`rank_after`), and how many
    experts of each, whether the student is repaired and compared with its teacher, and how it is stored."""

    keep: str | None = None
    """SPEC: alternate | a slice 1::2 | a list 0,2,5-9 | uniform:N | contiguous:N (N layers stay), or pattern:SPEC.
    `alternate` when neither it nor `layers` is given; all layers where `experts` is."""
    preserve_pattern: bool = False
    """Keep as many layers as `keep` says, but of each type of layer (sliding or full attention, dense or sparse) its
    share, the last layer kept."""
    layers: AtLeastOne | None = None
    """How many layers stay, those that matter most `by` a measure."""
    by: Method | None = None
    """METHOD: Measure of how much a layer matters; kl-greedy where nothing speaks for another."""
    rank_after: AtLeastOne | None = None
    """Heal each candidate cut of `layers` layers on so many tokens first, and keep the one that is best then."""
    candidates: tuple[str, ...] | None = None
    """METHODs and SPECs that name the cuts to heal, `random` three; by default every METHOD (or that of `by`),
    alternate, uniform:N, contiguous:N and random."""
    rank_tasks: Annotated[tuple[str, ...] | None, Before(None)] = None
    """Compare the healed candidates by their mean score on these tasks (as `eval.tasks`), in place of their nearness
    to the teacher."""
    rank_items: Annotated[AtLeastOne, Before(200)] = 200
    """Items of each of these tasks, its first."""
    seed: Count = 0
    """Of the draw, for `by: random`."""
    experts: Annotated[CountOrShare | None, Before(None)] = None
    """N: How many experts of each mixture-of-experts layer stay, or which share (75%): those with the highest mean of
    gate times norm of what they compute, over the tokens that they are given (REAP, arXiv 2510.13999)."""
    repair: bool = False
    """Change the block before each cut by least squares, so that it does some of what was dropped."""
    check: bool = True
    """Compare the student's logits with the teacher's, dropped layers skipped (needs 5 bytes a teacher parameter)."""

    def __post_init__(self) -> None:
        if self.experts is not None and self.rank_after is not None:
            raise ValueError("`rank_after` compares cuts of whole layers: drop `experts` of its student afterwards")
        check_request(self.rank_after, self.candidates, self.rank_tasks, self.layers, self.keep)
        if self.rank_after is None and (self.layers is None) != (self.by is None):
            raise ValueError("`layers` (how many stay) and `by` (the METHOD that chooses them) go together")
        if self.keep is not None and self.by is not None:
            raise ValueError("`keep` names the layers and `by` measures them; write one of the two")
        if self.layers is None:
            object.__setattr__(self, "keep", self.keep or (":" if self.experts is not None else "alternate"))
            check_spec(str(self.choice))
        elif self.preserve_pattern:
            raise ValueError("`preserve_pattern` chooses layers by their type and `by` by a measure; write one of them")

    @property
    def choice(self) -> str | RankingConfig | RankAfterConfig:
        """What `prune` takes as `keep`; of a RankAfterConfig, `compress.run.rank_after` makes it first."""
        if self.layers is None:
            return f"{PATTERN}{self.keep}" if self.preserve_pattern else str(self.keep)
        if self.rank_after is not None:
            return self._part(RankAfterConfig, but=("data", "heal"))
        return self._part(RankingConfig)

    @property
    def repairing(self) -> RepairConfig | None:
        """What `prune` takes as `repair`."""
        return self._part(RepairConfig) if self.repair else None

    @property
    def how(self) -> How:
        """What `prune` and `prune_settings` take besides `keep`."""
        experts = None if self.experts is None else self._part(ExpertsConfig)
        return How(check=self.check, repair=self.repairing, storage=self._part(StorageConfig), experts=experts)

    def _part(self, kind: type[C], but: Collection[str] = ()) -> C:
        """The config of that kind with the values that this one has under the same names."""
        names = [field.name for field in dataclasses.fields(kind) if field.name not in but]  # type: ignore[arg-type]
        return kind(**{name: getattr(self, name) for name in names})
