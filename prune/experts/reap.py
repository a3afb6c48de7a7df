"""Which experts stay: those that change the hidden states of the tokens given to them most (REAP, arXiv 2510.13999).

Of expert j the score is, over the tokens x that the router gives it on calibration text,

    S_j = mean g_j(x) * ||f_j(x)||_2,

g_j being its gate as the model applies it and f_j what it computes (equation 9 there). An expert that no token is given
to scores 0.
"""

import dataclasses
import functools
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from compress.base.errors import InputError
from compress.base.progress import Bar
from compress.model.parts import decoder_layers, hidden_states
from compress.prune.choose.ranking import RankedModel, measuring
from compress.prune.parts import ExpertsConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertChoice:
    """The experts that stay, by sparse layer of the teacher."""

    before: int
    """Experts of each sparse layer of the teacher."""
    kept: Mapping[int, tuple[int, ...]]
    """Increasing."""
    details: dict[str, Any]
    """Scores, the text, and how it was run, as plain JSON data."""

    def of_layers(self, layers: Iterable[int]) -> dict[int, tuple[int, ...]]:
        """Those of a student's layers, which are these of the teacher's."""
        return {new: self.kept[old] for new, old in enumerate(layers) if old in self.kept}

    def to_dict(self) -> dict[str, Any]:
        """What prune.json says."""
        kept = {str(layer): experts for layer, experts in self.kept.items()}
        return {"method": "reap", "before": self.before, "kept": kept, **self.details}


@dataclasses.dataclass(frozen=True)
class Activations:
    """What was seen of the experts of one layer: sums [E] of g * ||f||, and tokens [E] that each was given."""

    sums: Tensor
    tokens: Tensor

    @property
    def scores(self) -> Tensor:
        """REAP's, float64 [E]."""
        return self.sums / self.tokens.clamp(min=1)


def choose_experts(config: ExpertsConfig, teacher: RankedModel, before: int, count: int) -> ExpertChoice:
    """Keep `count` of the `before` experts of each sparse layer, of equal scores the first.

    Raises:
        UsageError: no text is named, or no such device.
        InputError: the text or the model cannot be used, or a score is not finite.
    """
    started = time.monotonic()
    with measuring(config, teacher) as run, run.bar(1) as bar:
        found = measure_experts(run.model, run.batches(config.batch_tokens), bar)
    for layer, seen in found.items():
        if not seen.scores.isfinite().all():
            raise InputError(
                f"The score of an expert of layer {layer} of {teacher.name} is not a finite number: its values "
                "overflow. Measure in another dtype (prune.dtype: float32)."
            )
    best = {layer: seen.scores.argsort(descending=True, stable=True)[:count] for layer, seen in found.items()}
    details = {
        "scores": {str(layer): seen.scores.tolist() for layer, seen in found.items()},
        "tokens": {str(layer): seen.tokens.tolist() for layer, seen in found.items()},
        **run.details,
        "seconds": round(time.monotonic() - started, 3),
    }
    kept = {layer: tuple(sorted(experts.tolist())) for layer, experts in best.items()}
    return ExpertChoice(before=before, kept=kept, details=details)


@torch.inference_mode()
def measure_experts(model: Any, batches: Iterable[Tensor], bar: Bar) -> dict[int, Activations]:
    """Run `model` over `batches` of ids [B, S] once; what its experts did, by sparse layer."""
    found: dict[int, Activations] = {}
    with ExitStack() as hooks:
        for layer, module in expert_modules(model).items():
            size = module.num_experts
            found[layer] = Activations(torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.int64))
            take = functools.partial(_take, found[layer])
            hooks.callback(module.register_forward_pre_hook(take, with_kwargs=True).remove)
        for ids in batches:
            hidden_states(model, ids.to(model.device))
            bar.advance(ids.numel())
    return found


def expert_modules(model: Any) -> dict[int, Any]:
    """The module of all experts of each sparse layer, by layer."""
    return {
        number: module
        for number, layer in enumerate(decoder_layers(model)[1])
        for name, module in layer.named_modules()
        if name.rpartition(".")[2] == "experts"
    }


def _take(seen: Activations, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Add what the experts are about to do to tokens' states [T, D], given top-k indices and gates [T, k]."""
    names = ("hidden_states", "top_k_index", "top_k_weights")
    hidden, index, gates = (args[at] if at < len(args) else kwargs[name] for at, name in enumerate(names))
    for expert in index.unique().tolist():
        token, place = torch.where(index == expert)
        alone = torch.full_like(index[:1, :1], expert).expand(len(token), 1)
        # The module itself, for this expert alone and with a gate of 1: whatever form its weights have.
        output = module.forward(hidden[token], alone, torch.ones_like(gates[:1, :1]).expand(len(token), 1))
        norms = torch.linalg.vector_norm(output.float(), dim=-1).double().cpu()
        seen.sums[expert] += float((gates[token, place].double().cpu() * norms).sum())
        seen.tokens[expert] += len(token)
