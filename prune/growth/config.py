"""The whole of what `compress grow`, or a recipe's `grow:` section, can be asked."""

import dataclasses
from typing import Literal

from compress.base.config import config
from compress.prune.parts import AtLeastOne, CalibrationConfig, RankingConfig


@config
class GrowConfig(CalibrationConfig):
    """How many layers the grown models have, and which blocks are put back first."""

    layers: tuple[AtLeastOne, ...] = ()
    """How many layers, of the student's and the teacher's together: 24, or 20,24,28 for a model of each. By default
    every number between the student's and the teacher's."""
    by: Literal["kl-greedy", "first", "last"] = "kl-greedy"
    """ORDER: Which blocks are put back first: each time the one with which the model is nearest to the teacher
    (kl-greedy), or the first or the last of those that are missing, without measuring."""
    check: bool = True
    """Compare the logits of each model with those of the teacher that has the student's weights in its place."""

    def __post_init__(self) -> None:
        if len(set(self.layers)) < len(self.layers):
            raise ValueError("`layers` names a number twice; write each once")

    @property
    def reads_text(self) -> bool:
        """Whether text is needed, to measure which blocks go back first."""
        return self.by == "kl-greedy"

    def measure(self, layers: int) -> RankingConfig:
        """How the text is read and the models are run on it, to measure up to so many layers."""
        names = [field.name for field in dataclasses.fields(CalibrationConfig)]
        return RankingConfig(layers=layers, by="kl-greedy", **{name: getattr(self, name) for name in names})
