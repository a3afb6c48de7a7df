"""Low-rank adapters beside frozen weights, through peft: put into a model, and in the end merged and saved."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from compress.base.errors import UsageError, reason_of
from compress.distill.students.config import LoraConfig
from compress.model.parts import decoder_layers

ADAPTER = "adapter"
"""The folder, in that of the merged student, of the adapters alone."""
_NAME = "default"
_PREFIX = "base_model.model."
"""What peft puts before a parameter's name in a file."""


def linear_maps(model: nn.Module) -> dict[str, nn.Module]:
    """The linear maps of the blocks by name: neither embeddings nor the output head, nor experts in one tensor."""
    stack, layers = decoder_layers(model)
    named = ((f"{stack}.{name}", module) for name, module in layers.named_modules())
    return {name: module for name, module in named if isinstance(module, nn.Linear | Conv1D)}


def add_adapters(model: nn.Module, config: LoraConfig, seed: int) -> Any:
    """Put adapters into a model in place, its own weights frozen; returns peft's `LoraModel` around it.

    A is drawn by `seed`, whatever the device, and B is 0: the model says what it said before. A and B are fp32 where
    the weights beside them are of 16 bits. Works on the meta device.

    Raises:
        UsageError: a target that no linear map of the blocks has, or what peft does not do.
    """
    import peft

    targets = _targets(model, config)
    asked = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_dora=config.dora,
        target_modules=list(targets),
        fan_in_fan_out=all(isinstance(module, Conv1D) for module in targets.values()),
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            adapters = peft.LoraModel(model, asked, _NAME)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise UsageError(
                f"lora: peft cannot add these adapters to {type(model).__name__} ({reason_of(error)}). Change them, or "
                "use train: last:K."
            ) from error
    for layer in _layers(adapters):
        layer.cast_input_dtype_enabled = False  # autocast does it, and keeps no fp32 copy of what goes in
    return adapters


class Merged:
    """A model with trained adapters: saved as a plain one, with the adapters in a folder of their own."""

    def __init__(self, adapters: Any, dtype: torch.dtype) -> None:
        self._adapters, self._dtype = adapters, dtype

    def save_pretrained(self, folder: Path) -> None:
        """Write the merged model to `folder`, and what peft loads onto the unmerged one to `folder/adapter`."""
        save_adapters(self._adapters, folder / ADAPTER)
        merge(self._adapters, self._dtype).save_pretrained(folder)


def save_adapters(adapters: Any, folder: Path) -> None:
    """Write adapters as peft reads them: adapter_config.json and adapter_model.safetensors."""
    from peft import get_peft_model_state_dict

    found: Mapping[str, torch.Tensor] = get_peft_model_state_dict(
        adapters.model, adapter_name=_NAME, save_embedding_layers=False
    )
    folder.mkdir(parents=True)
    tensors = {f"{_PREFIX}{name}": tensor.detach().cpu().contiguous() for name, tensor in found.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = adapters.peft_config[_NAME]
    config.base_model_name_or_path, config.inference_mode = adapters.model.name_or_path, True
    config.save_pretrained(folder)


def merge(adapters: Any, dtype: torch.dtype) -> Any:
    """The plain model with W + (alpha / r) B A for each W, summed in fp32 and rounded once to `dtype`."""
    for layer in _layers(adapters):
        own = layer.get_base_layer().float()
        layer.merge()
        own.to(dtype)
    return adapters.unload().to(dtype)


def _targets(model: nn.Module, config: LoraConfig) -> dict[str, nn.Module]:
    maps = linear_maps(model)
    if not maps:
        raise UsageError(f"lora: the blocks of {type(model).__name__} have no linear maps; leave it out, or use train.")
    if config.targets is None:
        return maps
    for target in config.targets:
        if not any(_ends_in(name, target) for name in maps):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in maps}))
            raise UsageError(f"lora.targets: no linear map of the blocks is named {target}; there are {known}.")
    return {name: module for name, module in maps.items() if any(_ends_in(name, end) for end in config.targets)}


def _ends_in(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _layers(adapters: Any) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in adapters.modules() if isinstance(module, BaseTunerLayer)]
