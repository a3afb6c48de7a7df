"""What `compress prune` can be asked, as configs. Nothing here imports torch: a command starts by reading these."""

from typing import Annotated, Literal

from pydantic import Field

from compress.config import config
from compress.prune.spec import check_spec
from compress.units import ByteSize, Count

AtLeastOne = Annotated[Count, Field(ge=1)]


@config
class CalibrationConfig:
    """Which text the model is measured on, and how it is run on it."""

    calibration: str | None = None
    """SOURCE: `hub:ORG/NAME[:CONFIG]`, a local file, folder or glob of parquet, arrow, jsonl(.gz, .zst) or txt, or a
    token store (its training rows). In a recipe None is the run's own training rows."""
    calibration_tokens: AtLeastOne = 256_000
    """Tokens to measure on, in whole rows; all there are where the text is shorter."""
    calibration_seq_len: Annotated[Count, Field(ge=2)] = 2048
    """Tokens a row, at most the model's context; a token store has rows of its own."""
    calibration_column: Annotated[str, Field(min_length=1)] = "text"
    """Column (or JSON key) that holds the text."""
    batch_tokens: AtLeastOne = 8192
    """Tokens run through the model at once, at least a row: a matter of memory."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights while measuring: float32 on the CPU and the checkpoint's own elsewhere, unless named."""
    device: str | None = None
    """`cpu`, `cuda:1`, ...; the accelerator when there is one, else the CPU."""


Method = Literal[
    "block-influence", "angular", "perplexity", "perplexity-greedy", "taylor", "magnitude", "random"
]  # fmt: skip
WITHOUT_TEXT = ("magnitude", "random")


@config
class RankingConfig(CalibrationConfig):
    """Keep the layers that matter most."""

    layers: AtLeastOne
    """How many layers stay."""
    by: Method
    """METHOD: block-influence | angular | perplexity | perplexity-greedy | taylor | magnitude | random."""
    seed: Count = 0
    """Of the draw, for `by: random`."""


@config
class RepairConfig(CalibrationConfig):
    """Repair the cut by least squares on the text."""

    repair_ridge: Annotated[float, Field(gt=0)] = 1e-3
    """Pull of the repair towards no change, in mean squares of the map's input."""


@config
class StorageConfig:
    """How the teacher's weights are read and the student's are stored."""

    cast: Literal["float32", "bfloat16", "float16"] | None = None
    """Store the weights in this dtype instead of the teacher's. Tensors that the teacher keeps in another dtype than
    most of its weights (a router's bias in float32) stay as they are."""
    max_shard_size: ByteSize = 5 * 10**9
    """Bytes of tensors a file holds at most (`5GB`, `500MB`, `2GiB`), or one larger tensor."""
    link: bool = False
    """Hard-link files of the teacher that stay as they are, all tensors and names, instead of copying them. Both models
    then share these bytes on the disk, so neither may be edited in place by other tools."""
    stream: bool | None = None
    """Of a teacher on the hub, read only what the student keeps. None: when its weights are not in the local cache and
    nothing (check, measure, repair) needs the whole of it. True: and leave the check out."""


@config
class PruneConfig(CalibrationConfig):
    """Which layers stay, by name (`keep`) or by measure (`layers` and `by`), and whether the student is compared with
    its teacher."""

    keep: str | None = None
    """SPEC: alternate | a slice 1::2 | a list 0,2,5-9 | uniform:N | contiguous:N (N layers stay). `alternate` when
    neither it nor `layers` is given."""
    layers: AtLeastOne | None = None
    """How many layers stay, those that matter most `by` a measure."""
    by: Method | None = None
    """METHOD: block-influence | angular | perplexity | perplexity-greedy | taylor | magnitude | random."""
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
        if (self.layers is None) != (self.by is None):
            raise ValueError("`layers` (how many stay) and `by` (the METHOD that chooses them) go together")
        if self.keep is not None and self.by is not None:
            raise ValueError("`keep` names the layers and `by` measures them; write one of the two")
        if self.by is None:
            object.__setattr__(self, "keep", self.keep or "alternate")
            check_spec(str(self.keep))

    @property
    def choice(self) -> str | RankingConfig:
        """What `prune` takes as `keep`."""
        if self.layers is None or self.by is None:
            return str(self.keep)
        return RankingConfig(**{name: getattr(self, name) for name in RankingConfig.__dataclass_fields__})

    @property
    def repairing(self) -> RepairConfig | None:
        """What `prune` takes as `repair`."""
        if not self.repair:
            return None
        return RepairConfig(**{name: getattr(self, name) for name in RepairConfig.__dataclass_fields__})

    @property
    def storing(self) -> StorageConfig:
        """What `prune` takes as `storage`."""
        return StorageConfig(**{name: getattr(self, name) for name in StorageConfig.__dataclass_fields__})


@config
class PruneOptions:
    """What `compress prune` takes: one section of a recipe."""

    prune: PruneConfig = PruneConfig()
