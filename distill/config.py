"""Options of the distillation step."""

from typing import Annotated, Literal

from pydantic import Field

from compress.base.config import config, key_of
from compress.base.currency import FREE, Before, Meaning
from compress.base.units import Count, Every, EveryOrAuto
from compress.distill.select import SelectConfig
from compress.distill.students.config import StudentConfig
from compress.distill.teachers.config import MixtureConfig

Fraction = Annotated[float, Field(ge=0, le=1)]
AboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
AtLeastOne = Annotated[int, Field(ge=1)]
PositiveCount = Annotated[Count, Field(ge=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
DivergenceName = Literal[
    "forward_kl",
    "cross_entropy",
    "reverse_kl",
    "symmetric_kl",
    "jensen_shannon",
    "generalised_js",
    "total_variation",
    "skew_forward_kl",
    "skew_reverse_kl",
    "logit_mse",
    "uld",
]
"""Defined in `compress.distill.objective.divergences`, which needs torch, where this does not."""
_PARAMETERS = {
    "symmetric_kl": ("lambda", 0.5),
    "generalised_js": ("beta", 0.5),
    "skew_forward_kl": ("s", 0.1),
    "skew_reverse_kl": ("s", 0.1),
}


@config
class Schedule:
    """A number that changes over the run: {from: 4, to: 1, shape: linear, over: 0.5}."""

    from_: NonNegative
    """At the first step; `from` in a recipe."""
    to: NonNegative
    """In the end."""
    shape: Literal["linear", "cosine", "step"] = "linear"
    """How it gets there; step stays and then jumps."""
    over: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of all steps that it takes; after them it stays."""


Scheduled = NonNegative | Schedule


@config
class Weights:
    """What each term of the loss counts, by name; alpha says it of `soft` and `hard` where they are not named."""

    soft: Scheduled | None = None
    hard: Scheduled | None = None
    hidden: Scheduled | None = None
    """Of the distance between hidden states; None has no such term."""
    similarity: Scheduled | None = None
    """Of the distance between Gram matrices of hidden states; None has no such term."""


@config
class DivergenceConfig:
    """A divergence with its parameter: {name: skew_forward_kl, s: 0.2}."""

    name: DivergenceName
    lambda_: Fraction | None = None
    """Of symmetric_kl: lambda KL(p || q) + (1 - lambda) KL(q || p); 0.5 where it is not written."""
    beta: Fraction | None = None
    """Of generalised_js: beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q; its limits, 0 and 1,
    are forward and reverse KL. 0.5 where it is not written."""
    s: Beta | None = None
    """Of skew_forward_kl, KL(p || s p + (1 - s) q), and skew_reverse_kl, KL(q || (1 - s) p + s q); 0.1 where it is not
    written."""

    def __post_init__(self) -> None:
        own, default = _PARAMETERS.get(self.name, ("", 0.0))
        given = {key_of(name): value for name, value in vars(self).items() if name != "name" and value is not None}
        if other := [name for name in given if name != own]:
            has = f"has {own} (by default {default:g})" if own else "has no parameter"
            raise ValueError(f"{self.name} {has}, and not {other[0]}")

    @property
    def parameter(self) -> float:
        """Its parameter; 0 where it has none."""
        own, default = _PARAMETERS.get(self.name, ("", 0.0))
        given = {key_of(name): value for name, value in vars(self).items()}.get(own)
        return default if given is None else float(given)


def divergence_of(asked: DivergenceName | DivergenceConfig) -> DivergenceConfig:
    """A divergence as it is computed: named alone it has its default, and special cases are what they are cases of."""
    found = asked if isinstance(asked, DivergenceConfig) else DivergenceConfig(name=asked)
    if found.name == "jensen_shannon":
        return DivergenceConfig(name="generalised_js", beta=0.5)
    if found.name == "generalised_js" and found.parameter in (0, 1):
        return DivergenceConfig(name="reverse_kl" if found.parameter else "forward_kl")
    if found.name.startswith("skew_") and found.parameter == 0:
        return DivergenceConfig(name="reverse_kl" if found.name == "skew_reverse_kl" else "forward_kl")
    return found


BlockPair = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
Pairs = Literal["kept", "next", "uniform", "last"] | Annotated[tuple[BlockPair, ...], Field(min_length=1)]


@config
class HiddenConfig:
    """The term `hidden`: outputs of the student's blocks against outputs of the teacher's."""

    pairs: Pairs = "kept"
    """kept: each block with the teacher's that it was; next: with the one before the next kept; uniform: at the same
    share of the depth; last: the last blocks alone; or a list [[student's, teacher's], ...], 0-based."""
    distance: Literal["cosine", "mse"] = "cosine"
    """1 - cosine, or mean square of the difference."""
    layer_norm: bool = True
    """Take both states with mean 0 and variance 1 over their width."""
    projection: Literal["auto", "identity", "linear"] = "auto"
    """linear: a learned map of the student's states for each pair; auto: only where the widths differ."""
    leave_out_last: Annotated[int, Field(ge=0)] = 0
    """How many of the student's last blocks have no pair."""


@config
class SimilarityConfig:
    """The term `similarity`: which tokens of a row are alike, in the student's blocks and in the teacher's."""

    pairs: Pairs = "last"
    """As of `hidden`."""
    leave_out_last: Annotated[int, Field(ge=0)] = 0
    """As of `hidden`."""


@config
class DistillConfig(StudentConfig):
    """How the student learns from the teacher and from the data.

    A run may be resumed with other values of the options marked FREE: they do not touch the weights.
    """

    alpha: Fraction | Schedule = 0.8
    """Weight of the soft loss (against the teacher); the hard loss (next token) has 1 - alpha. 0 needs no teacher."""
    temperature: AboveZero | Schedule = 1.0
    """Divides both models' logits in the soft loss, which is multiplied by its square."""
    divergence: DivergenceName | DivergenceConfig = "forward_kl"
    """What the soft loss measures, by name, or with its parameter: {name: skew_forward_kl, s: 0.1}."""
    self_correct: Annotated[Annotated[float, Field(gt=0, lt=1)] | None, Before(None)] = None
    """tau: where the teacher's first choice is not the label, give the label the more of its probability, to tau above
    the first choice; where it is, tau more. For small, clean sets of data."""
    mixture: Annotated[MixtureConfig | None, Before(None)] = None
    """Other teachers beside the run's: {with: [{model: B, weight: 0.5}]}. The soft loss is against what they say
    together."""
    weights: Annotated[Weights | None, Before(None)] = None
    """What terms count beside, or instead of, what alpha says: {hidden: 0.2}."""
    hidden: Annotated[HiddenConfig | None, Before(None)] = None
    """How the term `hidden` is made, where `weights` gives it one."""
    similarity: Annotated[SimilarityConfig | None, Before(None)] = None
    """How the term `similarity` is made, where `weights` gives it one."""
    balance: Annotated[Literal["fixed", "level"], Before("fixed")] = "fixed"
    """level: each term is scaled, without gradient, to the size that the hard loss had at the step before."""
    select: Annotated[SelectConfig | None, Before(None)] = None
    """Which rows, or tokens, of the store to learn from, by how hard they are: {by: teacher_loss, to: 0.9}."""
    order: Annotated[Literal["random", "easy_to_hard"], Before("random")] = "random"
    """Order of the rows in an epoch: easy_to_hard is that of `select.by`, or of the teacher's loss."""
    tokens: PositiveCount | None = None
    """Tokens to train on; None is the whole store, `epochs` times."""
    epochs: AtLeastOne = 1
    """How often the store may be gone through, in a new order each time."""

    optimizer: Literal["adamw", "muon", "adamw8bit"] = "adamw"
    """muon: Muon for hidden matrices and AdamW for the rest, with one lr. adamw8bit: 8-bit moments (needs torchao)."""
    lr: AboveZero = 3e-4
    """Peak learning rate."""
    min_lr_fraction: Fraction = 0.1
    """The learning rate at the last step, as a fraction of the peak."""
    warmup_fraction: Fraction = 0.02
    """Fraction of all steps in which the learning rate rises from 0 to its peak."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Shape of the learning rate after the warm-up; wsd stays at the peak and falls as 1 - sqrt at the end."""
    decay_fraction: Fraction = 0.2
    """Fraction of all steps in which wsd's learning rate falls."""
    batch_tokens: PositiveCount = 524288
    """Tokens an optimizer step learns from, over all processes and micro-batches. It decides the result, where
    `eval.batch_tokens` and `prune.batch_tokens` are a matter of memory alone: here that is `micro_batch_rows`."""
    micro_batch_rows: Annotated[AtLeastOne | None, FREE] = None
    """Sequences that go through a model at once, per process; None chooses by the device. The result is the same."""
    clip_norm: AboveZero = 1.0
    """Largest 2-norm of the whole gradient; larger ones are scaled down to it."""
    weight_decay: NonNegative = 0.1
    """Decoupled weight decay, on matrices only."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    max_skipped_steps: Annotated[AtLeastOne, FREE] = 10
    """Give up after this many steps in a row were skipped."""
    spike_sigma: AboveZero | None = None
    """Skip a step, too, whose loss is this many standard deviations above the mean of the `spike_window` before it.
    None skips only steps whose loss or gradient is not finite."""
    spike_window: Annotated[int, Field(ge=8, le=100_000)] = 64
    """Steps whose losses `spike_sigma` is measured against; skipped steps are left out."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16: student's products in bf16 over fp32 master weights, teacher in bf16. auto: bf16 on GPUs that have it."""
    teacher_precision: Literal["auto", "int8", "fp8"] = "auto"
    """auto is the run's. int8: the teacher's weights in 8 bits; fp8: its products too (both need torchao)."""
    teacher_max_kl: AboveZero = 0.01
    """Most that int8 or fp8 may change the teacher: KL(exact || quantised) on held-out rows, nats a token."""
    save_dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Dtype of the final checkpoint; auto is that of the student it started from."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """How both models compute attention. auto is SDPA, and plain products for rows up to 256 tokens on CPUs; on GPUs in
    bf16 with `document_mask`, torch's variable-length flash attention."""
    document_mask: bool = False
    """Keep documents packed into a row apart: attention and positions start anew, and EOS predicts nothing.
    Conversations are kept apart in any case, see `data.apart`."""
    compile: Annotated[bool | Literal["auto"], Meaning("auto", False)] = "auto"
    """Compile both models with torch.compile, one graph each. auto: on GPUs, where a run is long enough to be worth a
    first step of a minute and the models make one graph; on CPUs it is about 2% of the time, and left out."""
    deterministic: Annotated[bool, Before(False)] = False
    """On GPUs, take only kernels whose sums have one order, so that a resumed run is bit for bit one that was not
    stopped; slower. CPUs need no such choice."""
    shard: Annotated[Literal["auto", "none", "student", "both"], FREE] = "auto"
    """Split the weights over the processes (FSDP2): the student's, its gradients and moments, or the teacher's too.
    auto: both where `accelerate launch` is configured for FSDP, else none. The result is the same."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    chunk_tokens: AtLeastOne | None = None
    """Tokens whose logits exist at once in the loss; None chooses by the device: 128 MiB of fp32 logits on CPUs, up to
    4096 tokens on GPUs."""
    fused_loss: bool = True
    """Make the loss from the logits in one compiled pass: C++ on CPUs with a compiler, Triton on CUDA devices."""
    cpu_tuning: bool = True
    """On CPUs: the faster fp32 matrix product where it is exact, and memory that is kept rather than returned."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the order of the data and of dropout."""

    log_every: Annotated[AtLeastOne, FREE] = 10
    """Steps between rows of metrics.jsonl."""
    heldout_every: Annotated[EveryOrAuto, FREE] = "auto"
    """Steps between held-out losses, or a share of all steps (`5%` or 0.05); 0 only at the start and the end. auto: 5%,
    or as much less as keeps the FLOPs of all of them to a twentieth of the training's."""
    heldout_sequences: Annotated[Annotated[int, Field(ge=0)] | Literal["auto"], Meaning("auto", 100)] = "auto"
    """Held-out sequences to measure on, of those the token store has; 0 measures nothing. auto: 100, or as many fewer,
    down to 16, as keep the FLOPs of measuring them at the start and at the end to a twentieth of the training's."""
    checkpoint_every: Annotated[Every, FREE] = 0.1
    """Steps between checkpoints, or a share of all steps (`10%` or 0.1); 0 only at the end. Held-out loss is measured
    before each, for the best to be known, unless `heldout_every: auto` finds that too much."""
    keep_checkpoints: Annotated[AtLeastOne, FREE] = 2
    """How many of the latest checkpoints stay on disk, besides the best, by held-out KL (without a teacher, loss)."""
    async_checkpoints: Annotated[bool, FREE] = False
    """Write checkpoints on a thread while training goes on, from a copy of the state in the host's memory."""
    trackers: Annotated[tuple[Literal["tensorboard", "wandb", "mlflow"], ...], FREE] = ()
    """Experiment trackers to log to, through accelerate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule == "wsd" and self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError("warmup_fraction and decay_fraction are more than all steps together; lower one")
        if self.self_correct is not None and divergence_of(self.divergence).name == "logit_mse":
            raise ValueError("self_correct changes the teacher's probabilities, and logit_mse has none; leave one out")
        if isinstance(self.alpha, Schedule) and max(self.alpha.from_, self.alpha.to) > 1:
            raise ValueError("alpha goes from a number of 0 to 1 to another; `weights` takes larger ones")
        if isinstance(self.temperature, Schedule) and min(self.temperature.from_, self.temperature.to) == 0:
            raise ValueError("temperature goes from a number above 0 to another")
        for term in ("hidden", "similarity"):
            if getattr(self, term) is not None and (self.weights is None or getattr(self.weights, term) is None):
                raise ValueError(f"`{term}` counts nothing without a weight: write weights: {{{term}: 0.1}} too")

    @property
    def scored(self) -> SelectConfig | None:
        """What rows and tokens are scored for: to be selected, or to be read in an order; None is neither."""
        return SelectConfig() if self.select is None and self.order == "easy_to_hard" else self.select
