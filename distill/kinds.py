"""What a training cannot be asked of masked language models, and of two kinds together."""

import functools
from collections.abc import Sequence

from compress.base.errors import Faults
from compress.base.processes import count
from compress.data import TextFacts
from compress.distill.config import DistillConfig, divergence_of
from compress.distill.resources.auto import resolve_sharding
from compress.model.facts import ModelFacts, check_same_kind, require_mask_token
from compress.model.kinds import kind_of, require_causal


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
