"""The two models of a run, loaded as its options ask."""

from pathlib import Path
from typing import Any

import torch

from compress.base.errors import InputError
from compress.distill.config import DistillConfig
from compress.distill.rows.documents import check_isolation
from compress.distill.students.sharding import Sharding
from compress.model.load import load_model
from compress.model.parts import check_output_head

_EAGER_ROW_TOKENS_CPU = 256


def load_models(
    config: DistillConfig,
    student: Path,
    teacher: Path | None,
    precision: str,
    attention: str | None,
    sharding: Sharding,
    device: torch.device,
) -> tuple[Any, Any | None]:
    """The student with fp32 weights, and the teacher frozen in the run's precision.

    What will be split over processes stays in the host's memory until then.
    """
    place = device if sharding == "none" else torch.device("cpu")
    learner = load_model(student, dtype=torch.float32, device=place, attn_implementation=attention)
    check_output_head(learner, str(student))
    _check_generation_config(learner, student)
    if config.document_mask:
        check_isolation(learner, str(student))
    if config.gradient_checkpointing:
        recompute_activations(learner)
    if config.compile:
        compile_backbone(learner)
    if teacher is None:
        return learner, None
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    place = torch.device("cpu") if sharding == "both" else device
    source = load_model(teacher, dtype=dtype, device=place, attn_implementation=attention)
    source.requires_grad_(False)
    check_output_head(source, str(teacher))
    if config.document_mask:
        check_isolation(source, str(teacher))
    if config.compile:
        compile_backbone(source)
    return learner, source


def resolve_attention(config: DistillConfig, device: torch.device, seq_len: int) -> str | None:
    """transformers' `attn_implementation`; None leaves it its choice (SDPA where the model has it).

    On CPUs, SDPA's backward pass costs more than the plain products do while a row's scores are small.
    """
    if config.attention != "auto":
        return config.attention
    return "eager" if device.type == "cpu" and seq_len <= _EAGER_ROW_TOKENS_CPU else None


def recompute_activations(model: Any) -> None:
    """Turn on gradient checkpointing, under the name this version of transformers has for it."""
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def compile_backbone(model: Any, backend: str = "inductor") -> None:
    """Have the model's decoder compiled at its first call, as one graph for each shape of its inputs.

    A graph is made for training and one for held-out rows, and for a smaller last micro-batch one more of each.
    """
    model.base_model.compile(fullgraph=True, dynamic=False, backend=backend)


def _check_generation_config(model: Any, student: Path) -> None:
    """transformers refuses to save some generation configs it loads; find out now, not after training."""
    generation = getattr(model, "generation_config", None)
    if generation is None:
        return
    try:
        generation.validate(strict=True)
    except ValueError as error:
        raise InputError(
            f"{student / 'generation_config.json'} contradicts itself, so the trained student could not be saved: "
            f'{" ".join(str(error).split())[:300]} Mend it (often: add "do_sample": true, or remove the temperature).'
        ) from error
