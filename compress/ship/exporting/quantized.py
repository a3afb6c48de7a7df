"""Weights in 8 or 4 bits through torchao, as plain transformers loads them.

transformers quantises the linear layers as it reads them, and saves them as safetensors whose config.json says how:
`AutoModelForCausalLM.from_pretrained` needs nothing but torchao beside it. Embeddings, norms and the output head stay
as they are.

- int8: symmetric, a float32 scale a row (torchao's `Int8WeightOnlyConfig`).
- int4: symmetric, a scale for each `group_size` weights of a row (`IntxWeightOnlyConfig`). torchao's packed 4-bit
  layouts are bound to kernels of one GPU; this one loads everywhere, and holds each 4-bit number in a byte. It computes
  in the dtype that it was made in, and no other.
"""

import logging
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM

from compress.base.errors import InputError, reason_of
from compress.base.packages import require_package
from compress.model.load import no_transformers_bars
from compress.model.parts import empty_model
from compress.model.remote_code import trusted
from compress.ship.exporting.config import ExportConfig


def check_quantized(name: str, model_config: Any, config: ExportConfig) -> None:
    """Refuse what torchao cannot quantise; `model_config` is the `PretrainedConfig` of the model `name`.

    Raises:
        UsageError: torchao is not installed.
        InputError: the model has no linear layers, or rows that cannot be parted into groups.
    """
    (asked,) = config.format
    require_package("torchao", f"export.format: {asked}")
    model = empty_model(model_config)
    head = model.get_output_embeddings()
    linear = {key: part for key, part in model.named_modules() if isinstance(part, nn.Linear) and part is not head}
    if not linear:
        raise InputError(
            f"{name} cannot be exported as {asked}: {type(model).__name__} has no linear layers that torchao knows. "
            "Export it as bf16 or f16."
        )
    if asked == "int4":
        for key, part in linear.items():
            if part.in_features % config.group_size:
                raise InputError(
                    f"{name} cannot be exported as int4: rows of {key} have {part.in_features} weights, no multiple of "
                    f"group_size = {config.group_size}. Choose a smaller group_size, or int8."
                )


def write_quantized(student: Path, out: Path, config: ExportConfig) -> None:
    """Write config.json, generation config and quantised weights of the model in `student`; memory is that model.

    Raises:
        InputError: transformers or torchao refuse it.
    """
    from transformers import TorchAoConfig

    try:
        with no_transformers_bars():
            model = AutoModelForCausalLM.from_pretrained(
                student,
                dtype="auto",
                use_safetensors=True,
                trust_remote_code=trusted(),
                quantization_config=TorchAoConfig(_how(config)),
            )
            model.save_pretrained(out)
    except Exception as error:
        raise InputError(
            f"{student} cannot be quantised as {config.format[0]} ({type(error).__name__}: {reason_of(error)}). Export "
            "it in another format."
        ) from error


def _how(config: ExportConfig) -> Any:
    """torchao's config; it must not touch the compiler's settings, which are the whole process's."""
    for name in ("torchao", "torch.utils._pytree"):  # on import they tell of kernels that this machine has no use for
        logging.getLogger(name).setLevel(logging.ERROR)
    import torch
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup

    if config.format == ("int8",):
        return Int8WeightOnlyConfig(set_inductor_config=False)
    return IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, "int4"),  # noqa: B009  (torch's own stubs lack it)
        granularity=PerGroup(config.group_size),
        scale_dtype=torch.float32,
    )
