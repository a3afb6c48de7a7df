"""What a training cannot be asked of masked and of vision-language models, and of two kinds together."""

import functools
from collections.abc import Sequence

from compress.base.errors import Faults, UsageError
from compress.base.processes import count
from compress.data import TextFacts
from compress.distill.config import DistillConfig, divergence_of
from compress.distill.resources.auto import resolve_sharding
from compress.model.facts import ModelFacts, check_same_kind, require_mask_token
from compress.model.kinds import kind_of, require_causal, require_text_alone, sees_images


def check_kinds(
    config: DistillConfig,
    student: ModelFacts,
    teachers: Sequence[ModelFacts],
    text: TextFacts | None,
    faults: Faults,
    *,
    cached: str | None,
) -> None:
    """Find what would refuse a student because of its kind, or because of those of its teachers."""
    for teacher in teachers:
        faults.of(functools.partial(check_same_kind, student, teacher))
    if kind_of(student.config) == "causal":
        _check_vision(config, student, faults, cached=cached)
        if text is not None and text.pictured:
            _check_pictures(config, student, teachers, faults, cached=cached)
        return
    faults.of(lambda: require_mask_token(student))
    sharding = faults.of(lambda: resolve_sharding(config, count()))
    for what, is_asked in (
        ("distill.on_policy", config.on_policy is not None),
        ("distill.select", config.select is not None),
        ("distill.order: easy_to_hard", config.order == "easy_to_hard"),
        ("distill.document_mask", config.document_mask),
        ("distill.divergence: uld", divergence_of(config.divergence).name == "uld"),
        (f"distill.shard: {sharding}", sharding not in (None, "none")),
        ("A cache of a teacher", cached is not None),
        ("A text of conversations", text is not None and text.marked),
    ):
        if is_asked:
            faults.of(functools.partial(require_causal, student.config, student.name, what))


def _check_vision(config: DistillConfig, student: ModelFacts, faults: Faults, *, cached: str | None) -> None:
    """Find what nobody has tried on vision-language models."""
    sharding = faults.of(lambda: resolve_sharding(config, count()))
    for what, is_asked in (
        ("distill.on_policy", config.on_policy is not None),
        ("distill.select", config.select is not None),
        ("distill.order: easy_to_hard", config.order == "easy_to_hard"),
        ("distill.compile: true", config.compile is True),
        ("distill.teacher_precision", config.teacher_precision != "auto"),
        ("distill.lora", config.lora is not None),
        (f"distill.shard: {sharding}", sharding not in (None, "none")),
        ("A cache of a teacher", cached is not None),
    ):
        if is_asked:
            faults.of(functools.partial(require_text_alone, student.config, student.name, what))


def _check_pictures(
    config: DistillConfig, student: ModelFacts, teachers: Sequence[ModelFacts], faults: Faults, *, cached: str | None
) -> None:
    """Find what cannot be learned from rows with images."""
    for model in (student, *teachers):
        faults.of(functools.partial(_require_sight, model, student))
    for what, is_asked in (
        ("distill.on_policy, which writes after text alone,", config.on_policy is not None),
        ("distill.select", config.select is not None),
        ("distill.order: easy_to_hard", config.order == "easy_to_hard"),
        ("distill.document_mask", config.document_mask),
        ("distill.mixture", config.mixture is not None),
        ("distill.divergence: uld", divergence_of(config.divergence).name == "uld"),
        ("distill.teacher_precision", config.teacher_precision != "auto"),
        ("distill.compile: true", config.compile is True),
        ("A cache of a teacher", cached is not None),
    ):
        if is_asked:
            faults.found.append(UsageError(f"{what} cannot be had with rows with images (data.form: images)."))


def _require_sight(model: ModelFacts, student: ModelFacts) -> None:
    """Refuse a model that cannot be given the images of a student's rows.

    Raises:
        UsageError: it is of another type, or of one that sees none.
    """
    if not sees_images(model.config) or model.config.model_type != student.config.model_type:
        raise UsageError(
            f"{model.name} ({model.config.model_type}) cannot be given rows with images that were prepared for "
            f"{student.name} ({student.config.model_type}): both must be vision-language models of one type. Prepare "
            "rows of text for them."
        )
