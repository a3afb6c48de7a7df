"""A student's frozen weights in 8 or 4 bits beside adapters, through bitsandbytes (an optional package)."""

from typing import Any

import torch
from torch import nn

from compress.base.errors import UsageError
from compress.base.packages import require_package
from compress.distill.config import DistillConfig
from compress.distill.resources.auto import resolve_sharding
from compress.distill.students.lora import linear_maps

_BYTES = {"int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}
"""Of a weight: nf4 has an 8-bit scale for 64 of them, and 4 bytes for 256 scales (QLoRA, arXiv:2305.14314)."""


def check_base(config: DistillConfig, device: torch.device, processes: int) -> None:
    """Refuse a quantised base where it cannot be had.

    Raises:
        UsageError: no GPU, no bitsandbytes, or weights that are split over processes.
    """
    kind = _kind(config)
    if kind == "auto":
        return
    option = f"lora.base_precision: {kind}"
    if device.type != "cuda":
        raise UsageError(f"{option} needs a GPU, and this machine has none: leave it out.")
    require_package("bitsandbytes", option)
    if (shard := resolve_sharding(config, processes)) != "none":
        raise UsageError(f"{option} needs the student's weights whole, and shard: {shard} splits them: use none.")


def loading_options(config: DistillConfig, device: torch.device, *, bf16: bool) -> dict[str, Any]:
    """What `from_pretrained` is told to quantise weights as it reads them; nothing where they stay exact."""
    kind = _kind(config)
    if kind == "auto":
        return {}
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        how = BitsAndBytesConfig(load_in_8bit=True)
    else:
        how = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if bf16 else torch.float32,
        )
    return {"quantization_config": how, "device_map": {"": device}}


def weight_bytes(model: nn.Module, config: DistillConfig) -> int:
    """Bytes of the parameters of a student as it is trained, which may be on the meta device."""
    total = sum(parameter.nbytes for parameter in model.parameters())
    kind = _kind(config)
    if kind == "auto":
        return total
    weights = [module.get_parameter("weight") for module in linear_maps(model).values()]
    # adapters are linear maps too, and trained
    return total - sum(w.nbytes - int(_BYTES[kind] * w.numel()) for w in weights if not w.requires_grad)


def _kind(config: DistillConfig) -> str:
    return "auto" if config.lora is None else config.lora.base_precision
