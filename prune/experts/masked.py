"""A teacher whose routers give nothing to the experts that go."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from compress.model.parts import decoder_layers

_ROUTER = "gate"


def mask_experts(model: Any, kept: Mapping[int, Sequence[int]]) -> None:
    """Let the routers of the `kept` experts' layers have logits of minus infinity for all other experts."""
    for number, experts in kept.items():
        layer = decoder_layers(model)[1][number]
        router = next(part for name, part in layer.named_modules() if name.rpartition(".")[2] == _ROUTER)
        gone = torch.ones(router.weight.shape[0], dtype=torch.bool)
        gone[list(experts)] = False
        router.forward = _masked(router, gone)


def _masked(router: nn.Module, gone: torch.Tensor) -> Callable[..., Any]:
    forward = router.forward

    def masked(*args: Any, **kwargs: Any) -> Any:
        with _Masking(router.weight, gone):
            return forward(*args, **kwargs)

    return masked


class _Masking(TorchFunctionMode):
    """While it is on, products with the matrix `weight` are minus infinity where rows of it are `gone`."""

    def __init__(self, weight: Any, gone: torch.Tensor) -> None:
        super().__init__()
        self._weight, self._gone = weight, gone

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is linear and args[1] is self._weight:
            return result.masked_fill(self._gone, -math.inf)
        return result
