"""The two losses made of logits, soft against the teacher and hard against the text, and what runs are compared by."""

import dataclasses

import torch

from compress.distill.config import DistillConfig, DivergenceConfig, divergence_of
from compress.distill.objective.loss import LossOptions, loss_of_valid
from compress.distill.objective.part import Outcome, Pair, Part
from compress.distill.objective.schedules import Setting
from compress.distill.objective.signals import Needs, Signals
from compress.distill.rows.batch import MicroBatch


@dataclasses.dataclass(frozen=True)
class SoftAndHard:
    """soft * its weight + hard * its weight, as `distillation_loss` defines them, in one pass over the logits."""

    options: LossOptions
    """With an alpha and a temperature that do not count: the setting has them."""
    names: tuple[str, ...]
    """Of the soft and the hard term; of the hard one alone where there is no teacher."""
    learned: None = None

    @property
    def needs(self) -> Needs:
        """Last hidden states and heads, which there always are; it makes its gradients itself."""
        return Needs()

    def __call__(
        self, student: Signals, teacher: Signals | None, batch: MicroBatch, num_tokens: float, setting: Setting
    ) -> Outcome:
        """See `Part`."""
        assert batch.weights is None, "each label counts once here"
        options, total = self._options_at(setting)
        dense = None if teacher is None or teacher.sparse or teacher.mixture else teacher
        out = loss_of_valid(
            student.hidden,
            student.head,
            None if dense is None else dense.hidden,
            None if dense is None else dense.head,
            batch.labels,
            options,
            num_tokens,
            None if teacher is None else teacher.sparse,
            None if teacher is None else teacher.mixture,
        )
        loss = out.loss if total == 1.0 else total * out.loss
        return Outcome(loss, torch.stack([out.soft, out.hard][-len(self.names) :]))

    def _options_at(self, setting: Setting) -> tuple[LossOptions, float]:
        """alpha and temperature of a step, and what both terms count together."""
        soft, hard = (setting.weights.get(name, 0.0) for name in ("soft", "hard"))
        total = soft + hard
        alpha = soft / total if total > 0 else 0.0
        return dataclasses.replace(self.options, alpha=alpha, temperature=setting.temperature), total


@dataclasses.dataclass(frozen=True)
class Yardstick:
    """What runs are compared by, whatever they minimise: `kl`, KL(teacher || student) at temperature 1, where there is
    a teacher, and `hard`, the cross-entropy of the next token; both means over the labels, in nats a token.
    """

    part: SoftAndHard
    names: tuple[str, ...]

    def __call__(self, student: Signals, teacher: Signals | None, batch: MicroBatch, num_tokens: float) -> Outcome:
        """See `Part`."""
        return self.part(student, teacher, batch, num_tokens, _PLAIN)

    def measures_as(self, part: Part, setting: Setting) -> bool:
        """Whether a part's terms have the values of this one's, however it weighs them."""
        plain = setting.temperature == _PLAIN.temperature
        return isinstance(part, SoftAndHard) and plain and part.options == self.part.options


_PLAIN = Setting({"hard": 1.0}, 1.0)


def soft_and_hard(config: DistillConfig, pair: Pair) -> Part:
    """Both losses as the options ask; without a teacher the hard one."""
    names = ("hard",) if pair.teacher is None else ("soft", "hard")
    return SoftAndHard(_options(config), names)


def yardstick(config: DistillConfig, pair: Pair) -> Yardstick:
    """What runs are compared by, in the same chunks as what they minimise."""
    names = ("hard",) if pair.teacher is None else ("kl", "hard")
    forward = DivergenceConfig(name="forward_kl")
    return Yardstick(
        SoftAndHard(dataclasses.replace(_options(config), divergence=forward, self_correct=None), names), names
    )


def _options(config: DistillConfig) -> LossOptions:
    return LossOptions(
        alpha=0.0,
        temperature=1.0,
        divergence=divergence_of(config.divergence),
        self_correct=config.self_correct,
        chunk_tokens=config.chunk_tokens,
        fused=config.fused_loss,
    )
