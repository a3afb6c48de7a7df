"""Options of on-policy distillation."""

from typing import Annotated

from pydantic import Field

from compress.base.config import config
from compress.base.currency import FREE
from compress.base.units import Count

Share = Annotated[float, Field(ge=0, le=1)]
AtLeastOne = Annotated[Count, Field(ge=1)]


@config
class Growth:
    """Rollouts that are short first, and longer as the student repeats itself less: {from: 32, to: 128}."""

    from_: AtLeastOne
    """Tokens at most in the beginning; `from` in a recipe."""
    to: AtLeastOne
    """In the end."""
    repetition: Share = 0.1
    """They become half as long again once at most this share of their 4-grams is one that the same rollout has had."""
    steps: AtLeastOne = 8
    """On-policy steps that this is measured over, each time anew."""

    def __post_init__(self) -> None:
        if self.from_ > self.to:
            raise ValueError("rollouts become longer: `from` is at most `to`")


@config
class OnPolicyConfig:
    """Generalised knowledge distillation (GKD, Agarwal et al., arXiv:2306.13649): in some of the steps the student goes
    on from the beginnings of the step's rows, and learns what its teacher says of that, by the same divergence.
    """

    fraction: Share = 0.5
    """GKD's lambda: the probability that a step is on-policy, decided by seed and step alone."""
    prompt_tokens: AtLeastOne = 32
    """Tokens of a row of text that are its prompt, from its beginning. A conversation's is all before its answer."""
    new_tokens: AtLeastOne | Growth = Growth(from_=32, to=128)
    """Tokens of a rollout at most, its end included: a number, or {from: 32, to: 128}."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Divides the logits that rollouts are drawn from; 0 takes the likeliest token each time. That of the loss is
    `distill.temperature`."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the likeliest tokens that have this share of the probability together."""
    batch_tokens: Annotated[AtLeastOne, FREE] = 8192
    """Tokens that the key-value caches of the rollouts written side by side hold, at most. Others may round
    otherwise."""

    @property
    def first_tokens(self) -> int:
        """Tokens of a rollout at most in the first on-policy step."""
        return self.new_tokens.from_ if isinstance(self.new_tokens, Growth) else self.new_tokens

    @property
    def most_tokens(self) -> int:
        """Tokens of a rollout at most in any step."""
        return self.new_tokens.to if isinstance(self.new_tokens, Growth) else self.new_tokens
