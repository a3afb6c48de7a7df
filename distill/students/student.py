"""The model that learns: what of it is trained, what a checkpoint keeps, what is split, and what it is in the end."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from compress.base.processes import is_main
from compress.distill.config import DistillConfig
from compress.distill.objective.part import Pair
from compress.distill.resources.auto import Here, stored_dtype
from compress.distill.resources.loading import compile_backbone, load_checked, recompute_activations
from compress.distill.students.config import LoraConfig
from compress.distill.students.lora import Merged, add_adapters
from compress.distill.students.parts import select, trains_all
from compress.distill.students.quantized import loading_options
from compress.distill.students.sharding import local, shard_model, whole, whole_model
from compress.model.load import load_model


class Stored(NamedTuple):
    """A tensor of this process, and the parameter that it is split like."""

    tensor: Tensor
    like: Tensor


class Savable(Protocol):
    """A model that can be written."""

    def save_pretrained(self, folder: Path) -> None:
        """Write it as a Hugging Face checkpoint."""


class Student(Protocol):
    """What the loop needs to know of a model in training."""

    @property
    def model(self) -> Any:
        """The Hugging Face model whose hidden states and head the objective sees; the optimizer steps those of its
        parameters that require gradients."""

    def trained(self) -> Mapping[str, Tensor]:
        """The parameters that learn, by name; an optimizer's state is kept under these names."""

    def kept(self) -> Mapping[str, Stored]:
        """What a checkpoint keeps, by name: all that training changes."""

    def shard(self, module: nn.Module, here: Here) -> None:
        """Split the weights of `module`, which holds the model, over all processes; raises as `shard_model`."""

    def finished(self, dtype: torch.dtype) -> Savable | None:
        """A plain Hugging Face model to save. Every process must call it; all but the main one get None."""


@dataclasses.dataclass(frozen=True)
class WholeStudent:
    """A student of which everything is trained."""

    model: Any

    def trained(self) -> dict[str, Tensor]:
        """All parameters (tied ones once)."""
        return dict(self.model.named_parameters())

    def kept(self) -> dict[str, Stored]:
        """What is trained, and persistent buffers."""
        parameters = {name: Stored(local(value.detach()), value) for name, value in self.trained().items()}
        persistent = self.model.state_dict().keys()
        buffers = {name: Stored(value, value) for name, value in self.model.named_buffers() if name in persistent}
        return {**parameters, **buffers}

    def shard(self, module: nn.Module, here: Here) -> None:
        """Layer by layer (FSDP2)."""
        shard_model(module, self.model, device=here.device, bf16=here.bf16)

    def finished(self, dtype: torch.dtype) -> Savable | None:
        """The model itself or, where it is split, a copy in the host's memory."""
        return whole_model(self.model, dtype)


@dataclasses.dataclass(frozen=True)
class PartlyTrained(WholeStudent):
    """A student of which some parameters are trained, or adapters beside them."""

    folder: Path
    """Where it is from: what is frozen is taken from there in the end, bit for bit."""
    lora: LoraConfig | None = None
    """The adapters it has."""

    def trained(self) -> dict[str, Tensor]:
        """The parameters that require gradients."""
        return {name: parameter for name, parameter in super().trained().items() if parameter.requires_grad}

    def finished(self, dtype: torch.dtype) -> Savable | None:
        """The model it began as, with what was trained put into it, in the host's memory."""
        tensors: dict[str, Tensor] = {}
        for name, (part, like) in self.kept().items():
            full = whole(part, like)
            if is_main():
                tensors[name] = full.cpu()
        if not is_main():
            return None
        model = load_model(self.folder, dtype=torch.promote_types(stored_dtype(self.folder), dtype))
        adapters = None if self.lora is None else add_adapters(model, self.lora, seed=0)
        unknown = model.load_state_dict(tensors, strict=False).unexpected_keys
        assert not unknown, unknown
        return model.to(dtype) if adapters is None else Merged(adapters, dtype)


@dataclasses.dataclass(frozen=True)
class WithLearned:
    """A student, and what is learned beside it: trained and kept with it, and no part of it in the end."""

    student: Student
    learned: nn.ModuleDict

    @property
    def model(self) -> Any:
        """See `Student`."""
        return self.student.model

    def trained(self) -> dict[str, Tensor]:
        """See `Student`; what is beside it by names that begin with `objective.`."""
        return {**self.student.trained(), **self._beside()}

    def kept(self) -> dict[str, Stored]:
        """See `Student`."""
        beside = {name: Stored(local(value.detach()), value) for name, value in self._beside().items()}
        return {**self.student.kept(), **beside}

    def shard(self, module: nn.Module, here: Here) -> None:
        """See `Student`."""
        self.student.shard(module, here)

    def finished(self, dtype: torch.dtype) -> Savable | None:
        """See `Student`."""
        return self.student.finished(dtype)

    def _beside(self) -> dict[str, Tensor]:
        return {f"objective.{name}": parameter for name, parameter in self.learned.named_parameters()}


def load_student(config: DistillConfig, folder: Path, here: Here, pair: Pair) -> Student:
    """The student of a folder with what is trained in fp32; what is frozen is in the run's precision.

    What will be split over processes stays in the host's memory until then.

    Raises:
        InputError: as `load_checked`.
        UsageError: as `select`.
    """
    device = here.device if here.sharding == "none" else torch.device("cpu")
    whole = trains_all(config, pair.student)
    narrow = here.bf16 and not whole
    model = load_checked(
        config,
        folder,
        here,
        dtype=torch.bfloat16 if narrow else torch.float32,
        device=device,
        **loading_options(config, device, bf16=here.bf16),
    )
    student = WholeStudent(model)
    if not whole:
        select(model, config, pair, bf16=here.bf16)
        student = PartlyTrained(model, folder, config.lora)
        if narrow and config.lora is None:
            _take_exactly(student.trained(), folder)
    if config.gradient_checkpointing:
        recompute_activations(model)
    if here.compiled:
        compile_backbone(model, asked=config.compile is True)
    return student


@torch.no_grad()
def _take_exactly(trained: Mapping[str, Tensor], folder: Path) -> None:
    """Undo what reading weights in bf16 rounded of those that are trained, where the checkpoint has wider ones."""
    if stored_dtype(folder) == torch.bfloat16:
        return
    exact = dict(load_model(folder, dtype=torch.float32).named_parameters())
    for name, parameter in trained.items():
        parameter.copy_(exact[name])
