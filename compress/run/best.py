"""The best known way to make a model smaller, as far as it was measured: what `compress init` writes, on each device.

What is found to be better is changed here, and nowhere else.
"""

import dataclasses
from typing import Any, NamedTuple


class Choice(NamedTuple):
    """A value of a recipe, by its dotted path, and why it is this one."""

    key: str
    value: Any
    why: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestWay:
    """What to write on one kind of device: values as they are, and what others are reckoned from."""

    choices: tuple[Choice, ...]
    seq_len: int
    """Tokens a row, at most the model's context."""
    hours: float | None
    """Of healing, where nobody says; None sets no bound."""
    tokens_per_parameter: float = 2.5
    """Tokens to heal on for each parameter of the student, where time does not say less."""
    most_tokens: int = 5 * 10**9
    """Half of what FineWeb's sample has."""
    steps: int
    """Optimizer steps to aim at, within these sizes of a step:"""
    least_step: int
    most_step: int = 524288
    lr: float = 3e-4
    small_step: int = 4096
    lr_of_small_steps: float = 1e-4
    """For steps of fewer tokens than `small_step`."""
    share_of_peak: float
    """Of the rate of the device's matrix products, what training reaches."""


_EVERYWHERE = (
    Choice("prune.by", "kl-greedy", "drops, one after another, the layer that its predictions miss least"),
    Choice("prune.repair", True, "mends the cut by least squares before it is healed"),
    Choice("distill.alpha", 1.0, "learns from the teacher's probabilities alone"),
    Choice("eval.tasks", ["quick"], "three short benchmarks"),
)
ON_GPU = BestWay(
    choices=_EVERYWHERE,
    seq_len=2048,
    hours=None,
    steps=1000,
    least_step=16384,
    share_of_peak=0.35,
)
ON_CPU = BestWay(
    choices=(
        *_EVERYWHERE,
        Choice("distill.checkpoint_every", "50%", "of the steps, from one checkpoint to the next"),
        Choice("eval.limit", 500, "questions a task; all of them without this line, which takes long on a CPU"),
        Choice("eval.heldout_sequences", 32, "rows for held-out loss and fidelity, for the same reason"),
    ),
    seq_len=512,
    hours=0.5,
    steps=250,
    least_step=512,
    share_of_peak=0.5,
)

SPEEDUP = 1.5
"""Where nobody asks for a speed-up, a depth or a score."""
LEAST_SHARE = 0.5
"""Of the layers that stay then: with fewer, a short healing brings little back."""
DATA = "hub:HuggingFaceFW/fineweb:sample-10BT"
