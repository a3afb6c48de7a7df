"""What on-policy steps cost and what refuses them, from config.json files alone."""

import dataclasses
from typing import Any

from compress.base.errors import UsageError
from compress.base.units import format_bytes
from compress.distill.resources.flops import measuring_flops_per_token
from compress.distill.rollouts.config import OnPolicyConfig
from compress.model.costs import model_costs

_SAMPLING_BYTES = 4 * 8
"""Of each logit while tokens are drawn: fp32, and in float64 the probability, its sums, and one more."""


@dataclasses.dataclass(frozen=True)
class RolloutPlan:
    """The on-policy steps of a run: expected numbers of steps, and rollouts as long as they may become."""

    fraction: float
    prompt_tokens: int
    first_tokens: int
    most_tokens: int
    rows: float
    """Of the data, in these steps."""
    writing_flops_per_token: float
    """Of a forward pass of the student."""
    memory_bytes: int
    """Of one process while it writes: key-value caches and what tokens are drawn from."""

    @property
    def tokens(self) -> float:
        """Tokens of prompts and rollouts."""
        return self.rows * (self.prompt_tokens + self.most_tokens)

    def describe(self) -> str:
        """The plan for people, one line."""
        lengths = f"{self.most_tokens}"
        if self.first_tokens < self.most_tokens:
            lengths = f"{self.first_tokens}, later {self.most_tokens}"
        return (
            f"on-policy: {self.fraction:.0%} of the steps, in each a rollout a row of at most {lengths} tokens after "
            f"{self.prompt_tokens} of the row; {format_bytes(self.memory_bytes)} while it writes"
        )


def plan_rollouts(config: OnPolicyConfig, student: Any, *, rows: int, step_rows: int, value_bytes: int) -> RolloutPlan:
    """Of a run that reads `rows` rows of the data, `step_rows` a step and process, with a model config `student`."""
    length = config.prompt_tokens + config.most_tokens
    together = min(step_rows, max(1, config.batch_tokens // length))
    cache = together * model_costs(student).cache_bytes(length, value_bytes)
    return RolloutPlan(
        fraction=config.fraction,
        prompt_tokens=config.prompt_tokens,
        first_tokens=config.first_tokens,
        most_tokens=config.most_tokens,
        rows=config.fraction * rows,
        writing_flops_per_token=measuring_flops_per_token(student, None, length),
        memory_bytes=cache + together * _SAMPLING_BYTES * student.get_text_config().vocab_size,
    )


def check_rollouts(config: OnPolicyConfig, seq_len: int | None, *, cached: bool) -> None:
    """Refuse prompts and rollouts that are longer than a row together, and a teacher that knows the data alone.

    Raises:
        UsageError: they are, where the length of rows is known; or the teacher is a cache.
    """
    if cached:
        raise UsageError(
            "A teacher's cache has what it says of the data, and on_policy asks it about text that the student writes: "
            "train without a cache, or leave on_policy out."
        )
    if seq_len is not None and config.prompt_tokens + config.most_tokens > seq_len:
        raise UsageError(
            f"on_policy: prompts of {config.prompt_tokens} tokens and rollouts of {config.most_tokens} are longer than "
            f"the data's rows of {seq_len}. Lower on_policy.prompt_tokens or on_policy.new_tokens, or prepare the data "
            "with a longer seq_len."
        )
