"""What the student has written so far, and how long it may write next: all there is to save of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from compress.base.errors import CompressError
from compress.distill.rollouts.config import Growth, OnPolicyConfig
from compress.inference.tree import Ids

GRAM = 4
_LONGER = 1.5
_EMPTY_STEPS = 10


class Counts(NamedTuple):
    """Of the rollouts of one on-policy step, over all processes."""

    rollouts: int
    prompt_tokens: int
    tokens: int
    """Written, ends included: each is a label."""
    ended: int
    """Rollouts that came to an end."""
    empty: int
    """Rollouts that are their end alone."""
    grams: int
    """4-grams in them."""
    repeated: int
    """Of these, those that the same rollout has had before."""

    @property
    def repetition(self) -> float:
        """The share of 4-grams that are repeated; 0 where there is none."""
        return self.repeated / max(self.grams, 1)


def count(prompts: Sequence[Ids], rollouts: Sequence[Sequence[int]], ends: set[int]) -> Counts:
    """The counts of rollouts, which went on from these prompts."""
    ended = [bool(rollout) and rollout[-1] in ends for rollout in rollouts]
    grams = [[tuple(rollout[i : i + GRAM]) for i in range(len(rollout) - GRAM + 1)] for rollout in rollouts]
    return Counts(
        rollouts=len(rollouts),
        prompt_tokens=sum(map(len, prompts)),
        tokens=sum(map(len, rollouts)),
        ended=sum(ended),
        empty=sum(end and len(rollout) == 1 for end, rollout in zip(ended, rollouts, strict=True)),
        grams=sum(map(len, grams)),
        repeated=sum(len(own) - len(set(own)) for own in grams),
    )


@dataclasses.dataclass
class Rollouts:
    """On-policy steps so far, over all resumed runs; see `Counts`."""

    limit: int
    """Tokens that a rollout of the next on-policy step has at most."""
    steps: int = 0
    rows: int = 0
    """Of the data that these steps read."""
    rollouts: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    ended: int = 0
    grams: int = 0
    repeated: int = 0
    seconds: float = 0.0
    """Spent in writing."""
    empty_steps: int = 0
    """On-policy steps in a row, up to the last, of which no rollout has any text."""
    recent_steps: int = 0
    """On-policy steps that repetition was measured over, since it last decided on the limit."""
    recent_grams: int = 0
    recent_repeated: int = 0

    def note(self, found: Counts, config: OnPolicyConfig, *, rows: int, seconds: float) -> None:
        """Count an on-policy step, which read so many `rows` of the data, and decide how long rollouts may be next.

        Raises:
            CompressError: no rollout had any text for too many on-policy steps in a row.
        """
        self.steps, self.rows, self.seconds = self.steps + 1, self.rows + rows, self.seconds + seconds
        for name in ("rollouts", "prompt_tokens", "tokens", "ended", "grams", "repeated"):
            setattr(self, name, getattr(self, name) + getattr(found, name))
        self.empty_steps = self.empty_steps + 1 if found.empty == found.rollouts else 0
        if self.empty_steps >= _EMPTY_STEPS:
            raise CompressError(_nothing(found))
        if isinstance(config.new_tokens, Growth) and self.limit < config.new_tokens.to:
            self._grow(found, config.new_tokens)

    def _grow(self, found: Counts, growth: Growth) -> None:
        self.recent_steps += 1
        self.recent_grams, self.recent_repeated = self.recent_grams + found.grams, self.recent_repeated + found.repeated
        if self.recent_steps < growth.steps:
            return
        if self.recent_repeated <= growth.repetition * self.recent_grams:
            self.limit = min(growth.to, int(self.limit * _LONGER) + 1)
        self.recent_steps = self.recent_grams = self.recent_repeated = 0

    def rates(self, learned_tokens: int, seconds: float) -> tuple[float, float]:
        """Tokens a second of writing, and of learning in the rest of the `seconds` of a training."""
        return self.tokens / max(self.seconds, 1e-9), learned_tokens / max(seconds - self.seconds, 1e-9)

    def describe(self, learned_tokens: int, seconds: float) -> dict[str, Any]:
        """Field `on_policy` of distill.json, of a training that took so long."""
        writing, learning = self.rates(learned_tokens, seconds)
        return {
            "steps": self.steps,
            "rollouts": self.rollouts,
            "tokens": self.tokens,
            "prompt_tokens": self.prompt_tokens,
            "mean_tokens": round(self.tokens / max(self.rollouts, 1), 2),
            "ended": self.ended,
            "repetition": round(self.repeated / max(self.grams, 1), 6),
            "limit": self.limit,
            "writing_seconds": round(self.seconds, 3),
            "writing_tokens_per_s": round(writing, 1),
            "learning_tokens_per_s": round(learning, 1),
        }


def _nothing(found: Counts) -> str:
    """Why the student wrote nothing, and what to do."""
    if found.rollouts == 0:
        return (
            f"In {_EMPTY_STEPS} on-policy steps in a row no row of the data had a prompt: what comes before the "
            "answers leaves no room for on_policy.new_tokens in a row. Lower that, or prepare data with a longer "
            "seq_len."
        )
    return (
        f"In {_EMPTY_STEPS} on-policy steps in a row the student ended each of its {found.rollouts} rollouts at once, "
        "so there is nothing to learn from. Train it on the text first (leave distill.on_policy out) and go on from "
        "the result, or lower on_policy.fraction; a model of conversations wants prompts in its chat template "
        "(data.form)."
    )


def rollouts_text(found: Mapping[str, Any]) -> str:
    """Field `on_policy` of distill.json for people."""
    return (
        f"on-policy: {found['rollouts']:,} rollouts in {found['steps']} steps, {found['mean_tokens']:.1f} tokens each, "
        f"{found['ended'] / max(found['rollouts'], 1):.0%} ended, {found['repetition']:.1%} of 4-grams repeated; "
        f"{found['writing_tokens_per_s']:,.0f} tokens/s written, {found['learning_tokens_per_s']:,.0f} learned"
    )
