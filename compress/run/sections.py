"""Sections of a recipe that no step owns: who teaches, a student of its own, what is measured, what is swept."""

import dataclasses
from typing import Annotated, Any

from pydantic import Field

from compress.base.config import config
from compress.base.currency import FREE, Before
from compress.distill import CacheConfig, DistillConfig
from compress.evaluate import DuringConfig, EvalConfig


@config
class ScratchTeacher:
    """A teacher trained here from random weights, for demos and for studies with no model at hand."""

    architecture: dict[str, Any]
    """Fields of its config.json, with `model_type` and `vocab_size`."""
    tokenizer: str
    """Folder of its tokenizer."""
    train: DistillConfig
    """How to train it: the options of `distill`, with `alpha: 0`."""


@config
class FinetuneConfig(DistillConfig):
    """The options of `distill`, for a training without a teacher."""

    alpha: Annotated[float, Field(ge=0, le=0)] = 0.0
    """There is no soft loss."""


@config
class TeacherConfig:
    """Where the teacher comes from: exactly one of `model` and `scratch`."""

    model: str | None = None
    """Hub id, local folder, or a GGUF file, which is dequantised once into the hub's cache folder."""
    revision: str | None = None
    """Commit, tag or branch on the hub; the default branch when absent."""
    trust_remote_code: bool = False
    """Let the model bring Python code of its own, which then runs here with all your rights: read it first."""
    scratch: ScratchTeacher | None = None
    """Train one here instead."""
    finetune: Annotated[FinetuneConfig | None, Before(None)] = None
    """Train the model on the run's text first, by cross-entropy: options of `distill`. What comes of it, RUN/teacher,
    is the teacher of all that follows (teacher correction, Sreenivas et al. 2024, arXiv 2408.11796)."""

    cache: Annotated[CacheConfig | None, Before(None)] = None
    """Run the teacher once over the run's text and keep its signals, in RUN/teacher-cache or the folder that is named;
    healing then reads them in its place. A cache that is there and of this teacher and text is read as it is."""

    def __post_init__(self) -> None:
        if (self.model is None) == (self.scratch is None):
            raise ValueError("write exactly one of `model` and `scratch`")
        if self.scratch is not None and self.scratch.train.alpha != 0:
            raise ValueError("a teacher from scratch has no teacher of its own: write `train: {alpha: 0}`")
        if self.scratch is not None and not self.scratch.train.is_whole:
            raise ValueError("a teacher from scratch is trained whole: leave lora and train out of its `train`")
        if self.training is not None and self.training.mixture is not None:
            raise ValueError("a teacher that is trained here has no teachers: leave `mixture` out of its training")
        if self.finetune is not None and self.scratch is not None:
            raise ValueError("a teacher from scratch is trained on the run's text anyway: leave `finetune` out")
        if self.training is not None and self.training.scored is not None:
            raise ValueError(
                "a teacher that is trained has no teacher to select text by: leave `select` and `order` out"
            )
        if self.training is not None and self.training.on_policy is not None:
            raise ValueError("a teacher that is trained has no teacher to learn from: leave `on_policy` out")

    @property
    def training(self) -> DistillConfig | None:
        """How the run trains it; None where it is used as it is."""
        return self.finetune if self.scratch is None else self.scratch.train


@config
class GivenStudent:
    """A student that is trained as it is, rather than cut from the teacher."""

    model: str
    """Hub id or local folder: any model whose vocabulary is the teacher's, up to padding; of another
    tokenizer only with `distill.divergence: uld`."""
    revision: str | None = None
    """Commit, tag or branch on the hub; the default branch when absent."""


@config
class RunEvalConfig(EvalConfig):
    """What a run measures: the options of `eval`, and what is scored while the student is trained."""

    during: Annotated[DuringConfig | None, FREE, Before(None)] = None
    """Score the student while it is trained, on the same few items each time: {tasks: [arc_easy], items: 200}."""

    @property
    def afterwards(self) -> EvalConfig:
        """What is measured of the finished models."""
        return EvalConfig(**{field.name: getattr(self, field.name) for field in dataclasses.fields(EvalConfig)})

    @property
    def of_training(self) -> EvalConfig | None:
        """How the student is scored while it is trained; None where it is not."""
        if self.during is None:
            return None
        return dataclasses.replace(self.afterwards, tasks=self.during.tasks, limit=self.during.items, other_text=None)


@config
class SweepConfig:
    """Several runs that differ in some keys of the recipe."""

    grid: dict[str, Any] | None = None
    """Key -> its values, in a list; there is a run for each of their combinations: {distill.alpha: [0.2, 0.8]}."""
    cases: Annotated[tuple[dict[str, Any], ...] | None, Field(min_length=1)] = None
    """Runs, each as the keys that it changes: [{distill.alpha: 0.2}, {prune.layers: 20}]."""

    def __post_init__(self) -> None:
        if (self.grid is None) == (self.cases is None):
            raise ValueError("write exactly one of `grid` and `cases`")
        for key, values in (self.grid or {}).items():
            if not isinstance(values, list) or not values:
                raise ValueError(f"grid: {key} needs a list of values")
