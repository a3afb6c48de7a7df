"""The parts of what `compress prune` can be asked: what layers are measured on, chosen by, repaired with, and how a
student is stored. Nothing here imports torch: a command starts by reading these."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from compress.base.config import config
from compress.base.currency import PLACE
from compress.base.units import ByteSize, Count

AtLeastOne = Annotated[Count, Field(ge=1)]


@config
class CalibrationConfig:
    """Which text the model is measured on, and how it is run on it."""

    calibration: Annotated[str | None, PLACE] = None
    """SOURCE: `hub:ORG/NAME[:CONFIG]`, a local file, folder or glob as for `data.dataset`, or a
    token store (its training rows). In a recipe None is the run's own training rows."""
    calibration_tokens: AtLeastOne = 256_000
    """Tokens to measure on, in whole rows; all there are where the text is shorter."""
    calibration_seq_len: Annotated[Count, Field(ge=2)] = 2048
    """Tokens a row, at most the model's context; a token store has rows of its own."""
    calibration_column: str = "text"
    """Column (or JSON key) that holds the text."""
    batch_tokens: AtLeastOne = 8192
    """Tokens run through the model at once, at least a row: a matter of memory, as `eval.batch_tokens` is, and no
    optimizer step, as `distill.batch_tokens` is."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights while measuring: float32 on the CPU and the checkpoint's own elsewhere, unless named."""
    device: str | None = None
    """`cpu`, `cuda:1`, ...; the accelerator when there is one, else the CPU."""


Method = Literal[
    "block-influence", "angular", "perplexity", "perplexity-greedy", "taylor", "magnitude", "random"
]  # fmt: skip
METHODS: tuple[Method, ...] = get_args(Method)
"""How layers can be measured; `compress.prune.choose.ranking` says what each is."""
WITHOUT_TEXT: tuple[Method, ...] = ("magnitude", "random")


@config
class RankingConfig(CalibrationConfig):
    """Keep the layers that matter most."""

    layers: AtLeastOne
    """How many layers stay."""
    by: Method
    """METHOD: Measure of how much a layer matters."""
    seed: Count = 0
    """Of the draw, for `by: random`."""

    @property
    def reads_text(self) -> bool:
        """Whether the measure needs text."""
        return self.by not in WITHOUT_TEXT


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
