"""The parts of what `compress prune` can be asked: what layers are measured on, chosen by, repaired with, and how a
student is stored. Nothing here imports torch: a command starts by reading these."""

from typing import Annotated, ClassVar, Literal, NamedTuple, get_args

from pydantic import Field

from compress.base.config import config
from compress.base.currency import PLACE, Before, Meaning
from compress.base.units import ByteSize, Count, CountOrShare

AtLeastOne = Annotated[Count, Field(ge=1)]


class Amount(NamedTuple):
    """How much text is read: tokens, in rows of at most so many."""

    tokens: int
    seq_len: int


_TRIAL, _TRIAL_ON_CPU = Amount(32_768, 512), Amount(4096, 256)
"""For a loss with each block skipped, which costs half a pass a block."""
_PASS, _PASS_ON_CPU = Amount(256_000, 2048), Amount(32_768, 2048)
"""For what one pass measures."""
_REPAIR = Amount(65_536, 512)
"""A least-squares map has as many unknowns a row as its block's last map has inputs: some thousand tokens overfit."""


@config
class CalibrationConfig:
    """Which text the model is measured on, and how it is run on it."""

    calibration: Annotated[str | None, PLACE] = None
    """SOURCE: `hub:ORG/NAME[:CONFIG]`, a local file, folder or glob as for `data.dataset`, or a
    token store (its training rows). In a recipe None is the run's own training rows."""
    calibration_tokens: Annotated[AtLeastOne | Literal["auto"], Meaning("auto", 256_000)] = "auto"
    """Tokens to measure layers on, in whole rows; all there are where the text is shorter. `auto`: by kl-greedy,
    perplexity-greedy and perplexity 4,096 on a CPU and 32,768 on an accelerator, by what one pass measures 32,768 and
    256,000."""
    calibration_seq_len: Annotated[Annotated[Count, Field(ge=2)] | Literal["auto"], Meaning("auto", 2048)] = "auto"
    """Tokens a row, at most the model's context; a token store has rows of its own. `auto`: 512
    for the repair, kl-greedy, perplexity-greedy and perplexity (256 on a CPU), so that little text has many rows; 2048
    elsewhere."""
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
    "block-influence", "angular", "perplexity", "perplexity-greedy", "kl-greedy", "taylor", "magnitude", "random"
]  # fmt: skip
METHODS: tuple[Method, ...] = get_args(Method)
"""How layers can be measured; `compress.prune.choose.ranking` says what each is."""
WITHOUT_TEXT: tuple[Method, ...] = ("magnitude", "random")
BY_TRIAL: tuple[Method, ...] = ("perplexity", "perplexity-greedy", "kl-greedy")
"""Those that run the model with blocks skipped."""


@config
class RankingConfig(CalibrationConfig):
    """Keep the layers that matter most."""

    layers: AtLeastOne
    """How many layers stay."""
    by: Method
    """METHOD: Measure of how much a layer matters; kl-greedy where nothing speaks for another."""
    seed: Count = 0
    """Of the draw, for `by: random`."""

    @property
    def reads_text(self) -> bool:
        """Whether the measure needs text."""
        return self.by not in WITHOUT_TEXT

    def amount(self, device: str) -> Amount:
        """The text to measure on, on a `device` of that type."""
        anywhere, on_cpu = (_TRIAL, _TRIAL_ON_CPU) if self.by in BY_TRIAL else (_PASS, _PASS_ON_CPU)
        return _amount(self.calibration_tokens, self.calibration_seq_len, on_cpu if device == "cpu" else anywhere)


@config
class RepairConfig(CalibrationConfig):
    """Repair the cut by least squares on the text."""

    repair_tokens: Annotated[AtLeastOne | Literal["auto"], Before("auto")] = "auto"
    """Tokens to fit the repair on, in whole rows; all there are where the text is shorter. `auto`: 65,536."""
    repair_ridge: Annotated[Annotated[float, Field(gt=0)] | Literal["auto"], Meaning("auto", 1e-3)] = "auto"
    """Pull of the repair towards no change, in mean squares of the map's input. `auto`: for each cut that which does
    best on rows held out from the fit."""

    @property
    def amount(self) -> Amount:
        """The text to fit on."""
        return _amount(self.repair_tokens, self.calibration_seq_len, _REPAIR)


def _amount(tokens: int | Literal["auto"], seq_len: int | Literal["auto"], auto: Amount) -> Amount:
    """What is named, and `auto` for what is not."""
    return Amount(auto.tokens if tokens == "auto" else tokens, auto.seq_len if seq_len == "auto" else seq_len)


@config
class ExpertsConfig(CalibrationConfig):
    """Drop experts of mixture-of-experts layers by REAP, measured on the text."""

    experts: CountOrShare
    """How many experts of each such layer stay."""

    by: ClassVar[str] = "reap"

    def amount(self, device: str) -> Amount:
        """The text to measure on, on a `device` of that type."""
        return _amount(self.calibration_tokens, self.calibration_seq_len, _PASS_ON_CPU if device == "cpu" else _PASS)


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
