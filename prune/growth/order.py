"""Which blocks are put back first: by name, or each time the one with which the model is nearest to the teacher."""

import dataclasses
import math
import time
from typing import Any

import torch

from compress.base.errors import InputError
from compress.inference.likelihood import likely_tokens
from compress.prune.choose.ablation import batch_key
from compress.prune.choose.race import Search, heats_of
from compress.prune.choose.ranking import Measuring, RankedModel, measuring
from compress.prune.growth.blocks import put_in
from compress.prune.growth.config import GrowConfig
from compress.prune.growth.plan import Growth
from compress.prune.plan import Derivation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """The teacher's layers in the order in which they are put back, as many as the largest model is given."""

    layers: tuple[int, ...]
    details: dict[str, Any]
    """The curve behind the choice, the text, and how it was run, as plain JSON data; empty without a measure."""


def order_blocks(config: GrowConfig, growth: Growth, derivation: Derivation) -> Order:
    """Choose the order; `derivation` is that of a model to make.

    Raises:
        UsageError: no text is named, or no such device.
        InputError: the text or a model cannot be used, or the KL is not finite.
    """
    if config.by == "first":
        return Order(layers=growth.missing[: growth.count], details={})
    if config.by == "last":
        return Order(layers=growth.missing[::-1][: growth.count], details={})
    return _measured(config, growth, derivation)


def _measured(config: GrowConfig, growth: Growth, derivation: Derivation) -> Order:
    started = time.monotonic()
    subject = RankedModel(
        name=growth.name,
        folder=growth.teacher,
        num_layers=growth.num_layers,
        layer_prefixes=derivation.layer_prefixes,
        num_parameters=derivation.plan.params_before,
    )
    with measuring(config.measure(growth.sizes[-1]), subject) as run:
        reference = _expectations(run, config.batch_tokens)
        put_in(run.model, growth)
        with run.ablation(reference) as ablation:
            missing, text = growth.missing, run.text
            search = Search(config.by, ablation, text, config.batch_tokens, growth.count, missing, put_back=True)
            with run.bar(search.trials) as bar:
                first, steps = search.run(bar)
    if not all(math.isfinite(step.loss_nats) for step in steps):
        raise InputError(
            f"The KL of {growth.student} with blocks of {growth.name} put back is not a finite number: hidden states "
            "overflow. Measure in another dtype (grow.dtype: float32)."
        )
    curve = {
        "kl_nats": float(first.base.mean()),
        "kl_nats_tokens": len(first.base),
        "steps": [
            {"put_back": step.layer, "kl_nats": step.loss_nats, "tokens": step.tokens, "heats": step.heats}
            for step in steps
        ],
        "reuses_prefix": ablation.reuses_prefix,
    }
    seconds = {"seconds": round(time.monotonic() - started, 3)}
    return Order(layers=tuple(step.layer for step in steps), details={**curve, **run.details, **seconds})


@torch.inference_mode()
def _expectations(run: Measuring, batch_tokens: int) -> dict[bytes, Any]:
    """What the teacher expects of the text, in the batches in which it is measured."""
    readout = run.readout()
    batches = [batch for heat in heats_of(run.text) for batch in heat.batches(batch_tokens)]
    return {batch_key(batch): likely_tokens(readout, batch.to(readout.device)) for batch in batches}
