"""What the options say at one step: the weight of each term, and the temperature."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from compress.distill.config import DistillConfig, Schedule


class Setting(NamedTuple):
    """What holds at one step."""

    weights: Mapping[str, float]
    """What each term counts in the loss, by name."""
    temperature: float


def value_at(value: float | Schedule, done: float) -> float:
    """A number of the options after the share `done` of a run's steps."""
    if not isinstance(value, Schedule):
        return value
    way = min(1.0, done / value.over)
    if value.shape == "step":
        way = float(way == 1.0)
    elif value.shape == "cosine":
        way = (1 - math.cos(math.pi * way)) / 2
    return value.from_ + (value.to - value.from_) * way


def format_value(value: float | Schedule) -> str:
    """A number of the options in words."""
    return f"{value.from_:g} to {value.to:g}" if isinstance(value, Schedule) else f"{value}"


def weight_of(config: DistillConfig, term: str) -> float | Schedule:
    """What a term counts: `weights` has its name, or alpha says so of `soft`, and 1 - alpha of `hard`."""
    named = None if config.weights is None else getattr(config.weights, term)
    if named is not None:
        found: float | Schedule = named
        return found
    if term not in ("soft", "hard"):
        return 0.0
    alpha = config.alpha
    if term == "soft":
        return alpha
    if isinstance(alpha, Schedule):
        return Schedule(from_=1 - alpha.from_, to=1 - alpha.to, shape=alpha.shape, over=alpha.over)
    return 1 - alpha


def most(value: float | Schedule) -> float:
    """The largest it becomes."""
    return max(value.from_, value.to) if isinstance(value, Schedule) else value


def setting_at(
    config: DistillConfig, terms: tuple[str, ...], done: float, levels: Mapping[str, float] | None = None
) -> Setting:
    """What holds after the share `done` of a run's steps.

    With `levels`, the terms as the step before had them, each but the hard one is brought to the hard one's size: its
    weight is multiplied by hard / term, without gradient (`balance: level`; Model Optimizer's and the dynamic loss
    scaling of torchtune's fork, which take the ratio of the micro-batch itself).
    """
    weights = {term: value_at(weight_of(config, term), done) for term in terms}
    if terms == ("hard",):
        weights = {"hard": 1.0}
    if config.balance == "level" and levels:
        weights = {term: weight * _level(term, levels) for term, weight in weights.items()}
    return Setting(weights, value_at(config.temperature, done))


def on_own_text(setting: Setting) -> Setting:
    """The same on text that the student wrote: alpha is 1, as its own tokens are nothing to learn by heart."""
    soft, hard = setting.weights["soft"], setting.weights["hard"]
    return setting._replace(weights={**setting.weights, "soft": soft + hard, "hard": 0.0})


def _level(term: str, levels: Mapping[str, float]) -> float:
    own = levels[term]
    return levels["hard"] / own if term != "hard" and own > 0 else 1.0
