"""Which parameters of a student are trained, by the options, and in which dtype it holds them."""

import copy
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from compress.base.errors import UsageError
from compress.distill.config import DistillConfig
from compress.distill.objective.part import Pair
from compress.distill.students.lora import add_adapters
from compress.model.costs import is_norm
from compress.model.kinds import sees_images
from compress.model.parts import decoder_layers, empty_model, vision_parameters

_FINAL_NORM = re.compile(r"(?i)((final|output|out|embedding)_)?(layer_?)?norm(_f)?|ln(_f|_out)?")
"""Of norms beside the stack of blocks, those that come after it; `embedding_norm` is LFM2's."""


def select(model: nn.Module, config: DistillConfig, pair: Pair, *, bf16: bool) -> Any | None:
    """Leave gradients to what the options train; returns peft's model around it where that is adapters.

    What is trained is put into fp32; what is frozen into bf16, where products are in that.

    Raises:
        UsageError: parts that the student does not have, or as `add_adapters`.
    """
    adapters = None
    if config.lora is not None:
        adapters = add_adapters(model, config.lora, config.seed)
    else:
        names = _trained_names(model, config, pair)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
    for parameter in filter(torch.is_floating_point, model.parameters()):  # quantised ones are integers
        frozen = bf16 and not parameter.requires_grad
        parameter.data = parameter.data.to(torch.bfloat16 if frozen else torch.float32)
    return adapters


def trains_all(config: DistillConfig, student: Any) -> bool:
    """Whether all weights of a student of this model config are trained: of a vision-language model never, whose tower
    and projector stay as they are."""
    return config.is_whole and not sees_images(student)


def sketch(config: DistillConfig, pair: Pair, *, bf16: bool) -> Any:
    """The student as it is trained, on the meta device.

    Raises:
        UsageError: as `select`.
    """
    model = empty_model(copy.deepcopy(pair.student))
    select(model, config, pair, bf16=bf16)
    return model


def trained_parameters(model: nn.Module) -> int:
    """How many parameters are trained, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def seams(pair: Pair) -> tuple[int, ...]:
    """The blocks after which the teacher has layers that the student does not; -1 stands for before the first.

    Layers that were dropped after the last one kept are known by the teacher's depth.

    Raises:
        UsageError: the student is no known cut, or one without gaps.
    """
    if pair.kept is None:
        raise UsageError(
            "train: seams goes by the layers that were dropped, and there is no prune.json beside the student to say "
            "which: use last:K, or whole."
        )
    depth = 0 if pair.teacher is None else pair.teacher.get_text_config().num_hidden_layers
    ends = (-1, *pair.kept, max(depth, pair.kept[-1] + 1))
    found = tuple(block - 1 for block in range(len(ends) - 1) if ends[block + 1] > ends[block] + 1)
    if not found:
        raise UsageError("train: seams trains beside dropped layers, and none was: use last:K, or whole.")
    return found


def _trained_names(model: nn.Module, config: DistillConfig, pair: Pair) -> set[str]:
    names = {name for name, _ in model.named_parameters()} - vision_parameters(model)
    if config.train == "norms":
        return {name for name in names if is_norm(name)}
    if config.train == "no_embeddings":
        return names - set(_embeddings_and_head(model))
    if config.train == "seams":
        blocks = seams(pair)
        return set(_of(model, blocks, names)) | {n for n in _of(model, [b + 1 for b in blocks], names) if is_norm(n)}
    if config.last_blocks is not None:
        count = len(decoder_layers(model)[1])
        if config.last_blocks > count:
            raise UsageError(f"train: {config.train} is more than there is: the student has {count} blocks.")
        return set(_of(model, range(count - config.last_blocks, count + 1), names))
    return names


def _of(model: nn.Module, blocks: Iterable[int], names: set[str]) -> Iterator[str]:
    """Names of the parameters of some blocks; the one after the last stands for the final norm."""
    stack, layers = decoder_layers(model)
    for block in blocks:
        if block == len(layers):
            yield from (name for name in names if is_final_norm(name, stack))
        yield from (name for name in names if name.startswith(f"{stack}.{block}."))


def is_final_norm(name: str, stack: str) -> bool:
    """Whether a parameter is of the norm between the blocks, whose stack has a dotted name, and the output head."""
    owner, _, module = name.rpartition(".")[0].rpartition(".")
    return owner == stack.rpartition(".")[0] and _FINAL_NORM.fullmatch(module) is not None


def _embeddings_and_head(model: nn.Module) -> Iterator[str]:
    head = model.get_output_embeddings()  # type: ignore[operator]
    for module_name, module in model.named_modules():
        if isinstance(module, nn.Embedding) or module is head:
            yield from (f"{module_name}.{name}" for name, _ in module.named_parameters(recurse=False))
