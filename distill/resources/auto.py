"""What each `auto` of the options, and each None that the machine decides on, becomes here."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from compress.base.errors import UsageError
from compress.distill.config import DistillConfig
from compress.model.files import check_weight_files
from compress.model.load import load_config

Sharding = Literal["none", "student", "both"]
LAUNCHER_ASKS = "ACCELERATE_USE_FSDP"
"""Set by `accelerate launch` where it is configured for FSDP."""

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_EAGER_ROW_TOKENS_CPU = 256
_MICRO_BATCH_TOKENS_CPU = 4096
_MICRO_BATCH_TOKENS_ACCELERATOR = 16384
_FLOPS_WORTH_COMPILING = 2e17
"""Of a whole run: some ten minutes of an H100, of which compiling takes one or two and saves at least that."""


class Here(NamedTuple):
    """How a run goes on this machine."""

    device: torch.device
    precision: str
    """bf16 or fp32."""
    attention: str | None
    """transformers' `attn_implementation`; None leaves it its choice, or one of `compress.distill.resources.attention`
    where that is right."""
    sharding: Sharding
    micro_batch_rows: int
    compiled: bool
    """Whether models are compiled; with `compile: auto`, those that make one graph."""
    seq_len: int
    documents_apart: bool
    """Whether the documents of a row are kept apart."""

    @property
    def bf16(self) -> bool:
        """Whether products are in bf16."""
        return self.precision == "bf16"


def resolve(
    config: DistillConfig, device: torch.device, *, processes: int, seq_len: int, flops: float, documents_apart: bool
) -> Here:
    """What the options come to on a device, for a run of that many FLOPs; raises as `resolve_sharding`."""
    sharding = resolve_sharding(config, processes)
    return Here(
        device=device,
        precision=resolve_precision(config, device),
        attention=resolve_attention(config, device, seq_len),
        sharding=sharding,
        micro_batch_rows=config.micro_batch_rows or default_micro_batch_rows(device, seq_len),
        compiled=resolve_compile(config, device, sharding, flops),
        seq_len=seq_len,
        documents_apart=documents_apart,
    )


def resolve_compile(config: DistillConfig, device: torch.device, sharding: Sharding, flops: float) -> bool:
    """Whether to compile: `auto` is on GPUs that have Triton, for long runs whose models stay whole and read rows of
    one length alone.

    The length of a run is its FLOPs, which no machine's mood changes: a resumed run decides alike.
    """
    if config.compile != "auto":
        return config.compile
    possible = (
        device.type == "cuda" and find_spec("triton") is not None and sharding == "none" and config.on_policy is None
    )
    return possible and flops >= _FLOPS_WORTH_COMPILING


def resolve_precision(config: DistillConfig, device: torch.device) -> str:
    """`bf16` or `fp32`; automatic is bf16 on CUDA devices that have it."""
    if config.precision != "auto":
        return config.precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def resolve_attention(config: DistillConfig, device: torch.device, seq_len: int) -> str | None:
    """transformers' `attn_implementation`; None leaves it its choice (SDPA where the model has it).

    On CPUs, SDPA's backward pass costs more than the plain products do while a row's scores are small.
    """
    if config.attention != "auto":
        return config.attention
    return "eager" if device.type == "cpu" and seq_len <= _EAGER_ROW_TOKENS_CPU else None


def default_micro_batch_rows(device: torch.device, seq_len: int) -> int:
    """Rows of about 4096 tokens on a CPU and 16384 on an accelerator."""
    tokens = _MICRO_BATCH_TOKENS_CPU if device.type == "cpu" else _MICRO_BATCH_TOKENS_ACCELERATOR
    return max(1, tokens // seq_len)


def resolve_sharding(config: DistillConfig, processes: int) -> Sharding:
    """Which models are split; `auto` is both where `accelerate launch` was configured for FSDP, else none.

    Raises:
        UsageError: sharding with one process, with an optimizer that needs whole matrices, or with another option that
            needs what it splits.
    """
    if config.shard == "auto":
        asked = os.environ.get(LAUNCHER_ASKS, "false").lower() in ("1", "true")
        shard: Sharding = "both" if asked and processes > 1 else "none"
    else:
        shard = config.shard
    if shard == "none":
        return shard
    if processes == 1:
        raise UsageError(
            f"shard: {shard} splits the weights over several processes, and this is one. Start it with "
            "`torchrun --nproc_per_node=N --no-python compress ...`, or leave it out."
        )
    if config.optimizer != "adamw":
        raise UsageError(
            f"optimizer: {config.optimizer} works on whole matrices, which shard: {shard} splits. Use optimizer: adamw."
        )
    if config.compile is True:
        raise UsageError(
            f"compile: true makes one graph of a model, which shard: {shard} cuts at every layer. Leave one out."
        )
    if config.on_policy is not None:
        raise UsageError(
            f"on_policy lets the student write with whole weights, which shard: {shard} splits. Use shard: none."
        )
    if shard == "both" and config.teacher_precision != "auto":
        raise UsageError(
            f"teacher_precision: {config.teacher_precision} needs the teacher's weights whole: use shard: student."
        )
    return shard


def saved_dtype(config: DistillConfig, source: Path) -> torch.dtype:
    """The dtype to save in: as the config says, or that of the weights the run started from."""
    return stored_dtype(source) if config.save_dtype == "auto" else _DTYPES[config.save_dtype]


def stored_dtype(source: Path) -> torch.dtype:
    """The dtype of a model folder's weights, as its config or else its first tensor has it."""
    declared = load_config(source).dtype
    if isinstance(declared, torch.dtype):
        return declared
    from safetensors import safe_open

    with safe_open(check_weight_files(source)[0], framework="pt") as shard:
        dtype: torch.dtype = shard.get_tensor(next(iter(shard.keys()))).dtype
    return dtype
