"""What loading a student and loading a teacher have in common."""

from pathlib import Path
from typing import Any

import torch

from compress.distill.config import DistillConfig
from compress.distill.rows.documents import check_isolation
from compress.model.load import load_model
from compress.model.parts import check_output_head


def load_checked(
    config: DistillConfig, folder: Path, *, dtype: torch.dtype, device: torch.device, attention: str | None
) -> Any:
    """A model of a run, found to give its logits by its head and, with `document_mask`, to keep documents apart.

    Raises:
        InputError: the folder holds no model that can be loaded.
        CompressError: its logits are no product of hidden states and head that we know.
        UsageError: it cannot keep documents apart.
    """
    model = load_model(folder, dtype=dtype, device=device, attn_implementation=attention)
    check_output_head(model, str(folder))
    if config.document_mask:
        check_isolation(model, str(folder))
    return model


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
