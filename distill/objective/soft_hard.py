"""The two losses made of logits, soft against the teacher and hard against the text, and what runs are compared by."""

import dataclasses

import torch

from compress.distill.config import DistillConfig
from compress.distill.objective.loss import LossOptions, loss_of_valid
from compress.distill.objective.part import Outcome, Pair, Part
from compress.distill.objective.signals import Needs, Signals
from compress.distill.rows.batch import MicroBatch


@dataclasses.dataclass(frozen=True)
class SoftAndHard:
    """alpha * soft + (1 - alpha) * hard, as `distillation_loss` defines them, in one pass over the logits."""

    options: LossOptions
    names: tuple[str, ...]
    """Of the soft and the hard term; of the hard one alone where there is no teacher."""

    @property
    def weights(self) -> dict[str, float]:
        """What both terms count, or the hard one alone."""
        alpha = self.options.alpha
        return dict(zip(self.names, (alpha, 1 - alpha)[-len(self.names) :], strict=True))

    @property
    def needs(self) -> Needs:
        """Last hidden states and heads, which there always are; it makes its gradients itself."""
        return Needs()

    def __call__(self, student: Signals, teacher: Signals | None, batch: MicroBatch, num_tokens: float) -> Outcome:
        """See `Part`."""
        assert batch.weights is None, "each label counts once here"
        out = loss_of_valid(
            student.hidden,
            student.head,
            None if teacher is None else teacher.hidden,
            None if teacher is None else teacher.head,
            batch.labels,
            self.options,
            num_tokens,
        )
        return Outcome(out.loss, torch.stack([out.soft, out.hard][-len(self.names) :]))

    def measures_as(self, part: Part) -> bool:
        """Whether another part's terms have the values of this one's, however it weighs them."""
        return isinstance(part, SoftAndHard) and self.options == dataclasses.replace(
            part.options, alpha=self.options.alpha
        )


def soft_and_hard(config: DistillConfig, pair: Pair) -> Part:
    """Both losses as the options ask; without a teacher the hard one."""
    names = ("hard",) if pair.teacher is None else ("soft", "hard")
    return SoftAndHard(_options(config, config.alpha), names)


def yardstick(config: DistillConfig, pair: Pair) -> SoftAndHard:
    """What runs are compared by, whatever they minimise: `kl`, KL(teacher || student) at temperature 1, where there is
    a teacher, and `hard`, the cross-entropy of the next token; both means over the labels, in nats a token.
    """
    plain = dataclasses.replace(_options(config, 0.0), temperature=1.0, divergence="forward_kl")
    return SoftAndHard(plain, ("hard",) if pair.teacher is None else ("kl", "hard"))


def _options(config: DistillConfig, alpha: float) -> LossOptions:
    return LossOptions(
        alpha=alpha,
        temperature=config.temperature,
        divergence=config.divergence,
        chunk_tokens=config.chunk_tokens,
        fused=config.fused_loss,
    )
