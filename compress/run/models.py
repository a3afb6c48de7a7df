"""Which models a run is about, and where each of them is."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from compress.distill import DistillConfig
from compress.model.vocabulary import same_tokens
from compress.run.finders import Folder, at
from compress.run.layout import Layout
from compress.run.recipe import Recipe
from compress.run.sections import TeacherConfig
from compress.run.stages import Stage

Find = Callable[[str, str | None], Path]
"""Finds the folder of a model by its name and revision, as `compress.model.files.local_model` does."""


class Models(NamedTuple):
    """The models of a run: each is looked for when a step needs it."""

    given: Folder | None
    """The teacher as the recipe names it, its vocabulary trimmed if that is asked for; None where it is trained from
    scratch."""
    teacher: Folder
    """What the student is cut from or learns from: `given`, or what the run trains first."""
    student: Folder
    """What is trained last: the cut, or the recipe's own student."""
    tokenizer: Folder
    """Where the text's tokenizer is: the student's, if it is no cut."""

    def reader(self) -> Path:
        """Where the model is that text is framed for: the given teacher, if it reads the student's tokens."""
        assert self.given is not None, "a student of its own has a teacher that is given"
        given, student = self.given(), self.tokenizer()
        return given if same_tokens(student, given) else student

    @classmethod
    def of(cls, recipe: Recipe, layout: Layout, find: Find) -> "Models":
        """The models of a resolved recipe."""
        given, tokenizer = _given(recipe.teacher, find)
        if recipe.trim is not None:
            given = tokenizer = at(layout.trimmed)
        teacher = given if given is not None and recipe.teacher.training is None else at(layout.teacher)
        if (student := recipe.student) is None:
            return cls(given, teacher, at(cut_of(recipe.chain, recipe.chain[-1], layout)), tokenizer)
        learner = functools.partial(find, student.model, student.revision)
        return cls(given, teacher, learner, learner)


def others(training: DistillConfig, find: Find) -> tuple[Folder, ...]:
    """The teachers of a training beside the run's."""
    named = () if training.mixture is None else training.mixture.with_
    return tuple(functools.partial(find, other.model, other.revision) for other in named)


def cut_of(chain: Sequence[Stage], stage: Stage, layout: Layout) -> Path:
    """Folder of the cut that a stage heals: its own, or that of a stage before."""
    return layout.stage(chain[stage.cut - 1].place).student_init


def whole_teacher(teacher: TeacherConfig, find: Find) -> Folder:
    """The given teacher as the recipe names it."""
    return functools.partial(find, str(teacher.model), teacher.revision)


def _given(teacher: TeacherConfig, find: Find) -> tuple[Folder | None, Folder]:
    """The given teacher, if there is one, and where its tokenizer is."""
    if teacher.scratch is not None:
        return None, functools.partial(Path, teacher.scratch.tokenizer)
    given = whole_teacher(teacher, find)
    return given, given
