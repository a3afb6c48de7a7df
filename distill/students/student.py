"""The model that learns: what of it is trained, what a checkpoint keeps, what is split, and what it is in the end."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from compress.distill.config import DistillConfig
from compress.distill.resources.auto import Here
from compress.distill.resources.loading import compile_backbone, load_checked, recompute_activations
from compress.distill.students.sharding import local, shard_model, whole_model


class Stored(NamedTuple):
    """A tensor of this process, and the parameter that it is split like."""

    tensor: Tensor
    like: Tensor


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

    def finished(self, dtype: torch.dtype) -> Any | None:
        """A plain Hugging Face model to save. Every process must call it; all but the main one get None."""


@dataclasses.dataclass(frozen=True)
class WholeStudent:
    """A student of which everything is trained."""

    model: Any

    def trained(self) -> dict[str, Tensor]:
        """All parameters (tied ones once)."""
        return dict(self.model.named_parameters())

    def kept(self) -> dict[str, Stored]:
        """Parameters (tied ones once) and persistent buffers."""
        parameters = {name: Stored(local(value.detach()), value) for name, value in self.model.named_parameters()}
        known = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        buffers = {name: Stored(value, value) for name, value in self.model.state_dict().items() if name not in known}
        return {**parameters, **buffers}

    def shard(self, module: nn.Module, here: Here) -> None:
        """Layer by layer (FSDP2)."""
        shard_model(module, self.model, device=here.device, bf16=here.bf16)

    def finished(self, dtype: torch.dtype) -> Any | None:
        """The model itself or, where it is split, a copy in the host's memory."""
        return whole_model(self.model, dtype)


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

    def finished(self, dtype: torch.dtype) -> Any | None:
        """See `Student`."""
        return self.student.finished(dtype)

    def _beside(self) -> dict[str, Tensor]:
        return {f"objective.{name}": parameter for name, parameter in self.learned.named_parameters()}


def load_student(config: DistillConfig, folder: Path, here: Here) -> Student:
    """The student with fp32 weights; what will be split over processes stays in the host's memory until then.

    Raises:
        InputError: as `load_checked`.
    """
    device = here.device if here.sharding == "none" else torch.device("cpu")
    model = load_checked(config, folder, here, dtype=torch.float32, device=device)
    if config.gradient_checkpointing:
        recompute_activations(model)
    if here.compiled:
        compile_backbone(model, asked=config.compile is True)
    return WholeStudent(model)
