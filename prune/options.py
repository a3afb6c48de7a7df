"""The whole of what `compress prune`, or a recipe's `prune:` section, can be asked."""

from typing import Annotated, Any, Literal

from pydantic import Field

from compress.config import config
from compress.prune.candidates import RankAfterConfig, check_request
from compress.prune.config import AtLeastOne, CalibrationConfig, Method, RankingConfig, RepairConfig, StorageConfig
from compress.prune.spec import PATTERN, check_spec
from compress.units import ByteSize, Count


@config
class PruneConfig(CalibrationConfig):
    """Which layers stay, by name (`keep`), by measure (`layers` and `by`) or by trial (`rank_after`), and whether the
    student is compared with its teacher."""

    keep: str | None = None
    """SPEC: alternate | a slice 1::2 | a list 0,2,5-9 | uniform:N | contiguous:N (N layers stay), or pattern:SPEC.
    `alternate` when neither it nor `layers` is given."""
    preserve_pattern: bool = False
    """Keep as many layers as `keep` says, but of each type of layer (sliding or full attention, dense or sparse) its
    share, the last layer kept."""
    layers: AtLeastOne | None = None
    """How many layers stay, those that matter most `by` a measure."""
    by: Method | None = None
    """METHOD: block-influence | angular | perplexity | perplexity-greedy | taylor | magnitude | random."""
    rank_after: AtLeastOne | None = None
    """Heal each candidate cut of `layers` layers on so many tokens first, and keep the one that is best then."""
    candidates: tuple[str, ...] | None = None
    """METHODs and SPECs that name the cuts to heal, `random` three; by default every METHOD (or that of `by`),
    alternate, uniform:N, contiguous:N and random."""
    seed: Count = 0
    """Of the draw, for `by: random`."""
    repair: bool = False
    """Change the block before each cut by least squares, so that it does some of what was dropped."""
    repair_ridge: Annotated[float, Field(gt=0)] = 1e-3
    """Pull of the repair towards no change, in mean squares of the input of the map that is changed."""
    check: bool = True
    """Compare the student's logits with the teacher's, dropped layers skipped (needs 5 bytes a teacher parameter)."""
    cast: Literal["float32", "bfloat16", "float16"] | None = None
    """Store the weights in this dtype instead of the teacher's (see `StorageConfig`)."""
    max_shard_size: ByteSize = 5 * 10**9
    """Bytes of tensors a file of the student holds at most (`5GB`, `500MB`), or one larger tensor."""
    link: bool = False
    """Hard-link the teacher's files that stay as they are instead of copying them."""
    stream: bool | None = None
    """Read only what the student keeps of a teacher on the hub; None: where nothing needs the whole of it."""

    def __post_init__(self) -> None:
        check_request(self.rank_after, self.candidates, self.layers, self.keep)
        if self.rank_after is None and (self.layers is None) != (self.by is None):
            raise ValueError("`layers` (how many stay) and `by` (the METHOD that chooses them) go together")
        if self.keep is not None and self.by is not None:
            raise ValueError("`keep` names the layers and `by` measures them; write one of the two")
        if self.layers is None:
            object.__setattr__(self, "keep", self.keep or "alternate")
            check_spec(str(self.choice))
        elif self.preserve_pattern:
            raise ValueError("`preserve_pattern` chooses layers by their type and `by` by a measure; write one of them")

    @property
    def choice(self) -> str | RankingConfig | RankAfterConfig:
        """What `prune` takes as `keep`; of a RankAfterConfig, `compress.rank_after` makes it first."""
        if self.layers is None:
            return f"{PATTERN}{self.keep}" if self.preserve_pattern else str(self.keep)
        if self.rank_after is not None:
            own = RankAfterConfig.__dataclass_fields__.keys() - {"data", "heal"}
            return RankAfterConfig(**{name: getattr(self, name) for name in own})
        return RankingConfig(**{name: getattr(self, name) for name in RankingConfig.__dataclass_fields__})

    @property
    def repairing(self) -> RepairConfig | None:
        """What `prune` takes as `repair`."""
        if not self.repair:
            return None
        return RepairConfig(**{name: getattr(self, name) for name in RepairConfig.__dataclass_fields__})

    @property
    def how(self) -> dict[str, Any]:
        """What `prune` and `prune_settings` take besides `keep`: `check`, `repair` and `storage`."""
        storage = StorageConfig(**{name: getattr(self, name) for name in StorageConfig.__dataclass_fields__})
        return {"check": self.check, "repair": self.repairing, "storage": storage}
