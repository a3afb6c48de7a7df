"""How the weights of several models become those of one: one tensor of each at a time.

All tensors are float32, of one shape; w_i are the models' weights, which sum to 1. What a model changed of the base is
its task vector, t_i = theta_i - theta_base.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from compress.ship.merging.config import MergeConfig

Merge = Callable[[Sequence[Tensor], Tensor | None], Tensor]
"""Merges a tensor of each model, given that of the base where there is one."""
_PARALLEL = 1e-6
_ROW_NUMBERS = 1 << 22  # that are in float64 at once


def merging(config: MergeConfig, num_models: int) -> Merge:
    """The method that a config asks for, as a function of tensors."""
    weights = _shares(config.weights, num_models)
    if config.method == "linear":
        return lambda models, _: linear(models, weights)
    if config.method == "slerp":
        return lambda models, _: slerp(models[0], models[1], weights[1])
    merge = functools.partial(ties if config.method == "ties" else important, weights=weights, scale=config.scale)
    density = config.kept

    def with_base(models: Sequence[Tensor], base: Tensor | None) -> Tensor:
        assert base is not None, "a method of task vectors has a base"
        return merge(models, base, density=density)  # type: ignore[arg-type]

    return with_base


def _shares(weights: Sequence[float] | None, num_models: int) -> list[float]:
    given = [1.0] * num_models if weights is None else list(weights)
    return [weight / sum(given) for weight in given]


def linear(models: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_i w_i theta_i (model soups, Wortsman et al. 2022, arXiv 2203.05482)."""
    total = torch.zeros_like(models[0])
    for model, weight in zip(models, weights, strict=True):
        total.add_(model, alpha=weight)
    return total


def slerp(first: Tensor, second: Tensor, t: float) -> Tensor:
    """sin((1 - t) a) / sin(a) theta_1 + sin(t a) / sin(a) theta_2, with a the angle between the two tensors as vectors
    (Shoemake, Animating rotation with quaternion curves, 1985); linear where they are parallel, or one is zero.

    Of vectors of different lengths, the length changes as well; the direction moves along the great circle only where
    they are the same.
    """
    product = float(torch.dot(first.flatten(), second.flatten()))
    lengths = float(first.norm()) * float(second.norm())
    cosine = max(-1.0, min(1.0, product / lengths)) if lengths else 1.0
    angle = float(np.arccos(cosine))
    sine = float(np.sin(angle))
    if sine < _PARALLEL:
        return linear([first, second], [1 - t, t])
    return linear([first, second], [float(np.sin((1 - t) * angle)) / sine, float(np.sin(t * angle)) / sine])


def ties(
    models: Sequence[Tensor], base: Tensor, *, weights: Sequence[float], density: float, scale: float = 1.0
) -> Tensor:
    """TIES (Yadav et al. 2023, arXiv 2306.01708): trim, elect signs, merge what agrees.

    1. Of each t_i the `density` share that is largest in magnitude stays, all that are as large as the smallest of it;
       the rest becomes 0.
    2. The sign of each parameter is that of sum_i w_i t_i.
    3. Its change is the mean, by weights, over the models whose change has that sign and is not 0.

    theta_base + scale * change. The paper trims over all of a model, and weighs all models alike; here each tensor is
    trimmed by itself, so that no model need be in memory.
    """
    trimmed = [_largest(model - base, density) for model in models]
    elected = linear(trimmed, weights).sign()
    agreeing = [each.sign() == elected for each in trimmed]
    masks = [agrees & (each != 0) for agrees, each in zip(agreeing, trimmed, strict=True)]
    return base + scale * _mean(trimmed, masks, weights)


def important(
    models: Sequence[Tensor], base: Tensor, *, weights: Sequence[float], density: float | None, scale: float = 1.0
) -> Tensor:
    """Changes whose importance stands out, as in the Branch-Merge of TinyR1 (2025, arXiv 2503.04872), which selects
    parameters as Arcee Fusion does (in mergekit).

    1. The importance of a parameter to model i is |t_i| KL(softmax(r_i) || softmax(r_base)), where r is the row (the
       last dimension) of the tensor that it stands in.
    2. Without a `density`, those stay whose importance is at least the median of the tensor's and 1.5 of its
       interquartile ranges; with one, that share of them which is the most important. A change of 0 never stays.
    3. The change of a parameter is the mean, by weights, over the models in which it stays; 0 where it stays in none.

    theta_base + scale * change. Arcee Fusion merges one model into the base, and takes several in turn; here several
    are merged at once, and their order does not matter.
    """
    changes = [model - base for model in models]
    masks = []
    for model, change in zip(models, changes, strict=True):
        score = change.abs() * _row_divergence(model, base)
        masks.append((score >= _threshold(score, density)) & (change != 0))
    return base + scale * _mean(changes, masks, weights)


def _mean(changes: Sequence[Tensor], masks: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The mean of changes, by weights, over those that each parameter has a mask for; 0 of none."""
    total, count = torch.zeros_like(changes[0]), torch.zeros_like(changes[0])
    for change, mask, weight in zip(changes, masks, weights, strict=True):
        total.add_(change * mask, alpha=weight)
        count.add_(mask, alpha=weight)
    return torch.where(count > 0, total / count.clamp_min(torch.finfo(count.dtype).tiny), 0.0)


def _largest(change: Tensor, density: float) -> Tensor:
    """A tensor with 0 in place of all but the share of its numbers that is largest in magnitude."""
    size = change.abs()
    return change * (size >= _least(size, density))


def _least(values: Tensor, share: float) -> float:
    """The smallest of the share of numbers that are largest; of at least one."""
    count = max(1, round(share * values.numel()))
    return float(torch.kthvalue(values.flatten(), values.numel() - count + 1).values)


def _threshold(score: Tensor, density: float | None) -> float:
    if density is not None:
        return _least(score, density)
    lower, median, upper = np.quantile(score.numpy(), (0.25, 0.5, 0.75))
    return float(median + 1.5 * (upper - lower))


def _row_divergence(model: Tensor, base: Tensor) -> Tensor:
    """KL(softmax(row of the model) || softmax(row of the base)), [..., 1], in float64: what little a training changes
    is lost in float32's rounding of logarithms."""
    width = model.shape[-1]
    rows = max(1, _ROW_NUMBERS // width)
    parts = []
    for own, its in zip(*(torch.split(each.reshape(-1, width), rows) for each in (model, base)), strict=True):
        p, q = own.double().log_softmax(-1), its.double().log_softmax(-1)
        parts.append((p.exp() * (p - q)).sum(-1, keepdim=True).clamp_min(0.0).float())
    return torch.cat(parts).reshape(*model.shape[:-1], 1)
