"""Weights split over the processes of a launch: torch's `fully_shard` (FSDP2), and whole tensors out of the parts.

Each decoder layer is gathered just before it computes and freed after it; embeddings, final norm and output head are
one group that is gathered in the forward pass and freed after the backward pass. Zhao et al., arXiv:2304.11277.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from compress.base.processes import is_main
from compress.distill.resources.auto import LAUNCHER_ASKS
from compress.model.parts import decoder_layers


@contextmanager
def launched_without_fsdp() -> Iterator[None]:
    """Keep accelerate from splitting models in its own way; that the launcher asked for it is read by
    `compress.distill.resources.auto`."""
    asked = os.environ.pop(LAUNCHER_ASKS, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[LAUNCHER_ASKS] = asked


def shard_model(module: nn.Module, model: Any, *, device: torch.device, bf16: bool) -> None:
    """Split in place the weights of `module`, which holds the Hugging Face `model`, over all processes.

    The weights may be on the CPU: a process never has more than one group of them on its device. With `bf16` they
    are gathered and multiplied in bf16 over fp32 masters, and gradients are summed in fp32.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    trained = any(parameter.requires_grad for parameter in model.parameters())
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 and trained else MixedPrecisionPolicy()
    for layer in decoder_layers(model)[1]:
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    module.to(device)


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard_model` has split it."""
    return isinstance(module, FSDPModule)


def free_gathered(module: nn.Module) -> None:
    """Free what a forward pass without a backward pass left gathered; the weights are their parts again."""
    if isinstance(module, FSDPModule):
        module.reshard()


def clip_gradients(accelerator: Any, module: nn.Module, norm: float) -> Tensor:
    """Scale all gradients down to a 2-norm of at most `norm`, over all processes; returns the norm before."""
    if not is_sharded(module):
        before: Tensor = accelerator.clip_grad_norm_(module.parameters(), norm)
        return before
    split = torch.nn.utils.clip_grad_norm_(module.parameters(), norm)
    return split.full_tensor() if isinstance(split, DTensor) else split


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, sharing its memory; a plain tensor is its own."""
    if not isinstance(tensor, DTensor):
        return tensor
    with torch.no_grad():
        part: Tensor = tensor.to_local()
    return part


def whole(part: Tensor, like: Tensor) -> Tensor:
    """The tensor whose part on this process is `part`, split as `like` is; every process must call it."""
    if not isinstance(like, DTensor) or part.shape != like.to_local().shape:
        return part
    split = DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    full: Tensor = split.full_tensor()
    return full


def part_of(full: Tensor, like: Tensor) -> Tensor:
    """The inverse of `whole`: this process's part of `full`."""
    if not isinstance(like, DTensor) or full.shape != like.shape:
        return full
    placed = distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return placed.to_local()


def whole_model(model: Any, dtype: torch.dtype) -> Any | None:
    """A Hugging Face model in `dtype` with all weights: itself, or, if it is split, a copy in the host's memory.

    Every process must call it; all but the main one get None.
    """
    parameters = dict(model.named_parameters())
    if not any(isinstance(parameter, DTensor) for parameter in parameters.values()):
        return model.to(dtype) if is_main() else None
    weights: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        full = whole(local(parameter), parameter).to(dtype)
        if is_main():
            weights[name] = full.cpu()
    if not is_main():
        return None
    weights |= {name: value for name, value in _persistent_buffers(model).items() if name not in weights}
    with torch.device("meta"):
        copy = type(model)(model.config).to(dtype)
    copy.load_state_dict(weights, assign=True, strict=False)
    copy.tie_weights()
    copy.generation_config = model.generation_config
    return copy


def _persistent_buffers(model: nn.Module) -> Mapping[str, Tensor]:
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {name: value.cpu() for name, value in model.state_dict().items() if name not in known}
