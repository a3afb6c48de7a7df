"""What would refuse to grow models, before anything is measured or copied."""

import functools
from pathlib import Path

from compress.base.errors import Faults
from compress.base.outputs import check_outputs
from compress.model.facts import ModelFacts, look_at_model
from compress.model.kinds import require_causal
from compress.prune.choose.spec import format_layers
from compress.prune.growth.config import GrowConfig
from compress.prune.growth.plan import Growth, plan_growth, sizes_between
from compress.prune.growth.record import grown_output
from compress.prune.plan import Derivation, derive
from compress.prune.preflight import check_reading
from compress.prune.student import why_unchecked


def check_growth(student: str | Path, teacher: str, out: Path, config: GrowConfig, faults: Faults) -> Growth | None:
    """Find what would refuse to grow models between two that are there, and return their plan if there is one."""
    check_outputs([grown_output(out)], faults)
    small, large = look_at_model(str(student), faults), look_at_model(teacher, faults)
    if small is None or large is None:
        return None
    growth = faults.of(lambda: plan_growth(student, teacher, config))
    cut = None if growth is None else faults.of(lambda: growth.derive(growth.kept))
    check_grow(config, large, cut, faults)
    return growth


def check_grow(
    config: GrowConfig, teacher: ModelFacts, cut: Derivation | None, faults: Faults, *, own_text: bool = False
) -> None:
    """Find what would refuse to grow a student that is, or will be, `cut` from the teacher.

    `own_text` says that the text to measure on is yet to be made (a run's own).
    """
    if config.reads_text:
        faults.of(lambda: require_causal(teacher.config, teacher.name, f"Growing by {config.by}"))
        parameters = None if cut is None else cut.plan.params_before + cut.plan.params_after
        both = f"{teacher.name} and its student"
        check_reading(config.measure(1), teacher, parameters, faults, own_text=own_text, held=both)
    if cut is None:
        return
    faults.of(lambda: why_unchecked(cut.plan, check=config.check, streamed=False))
    kept, total = cut.plan.kept_layers, cut.plan.num_layers
    sizes = faults.of(lambda: sizes_between(config, len(kept), total))
    missing = [layer for layer in range(total) if layer not in kept]
    for size in sizes or ():
        layers = sorted([*kept, *missing[len(missing) - (size - len(kept)) :]])
        faults.of(functools.partial(derive, teacher.name, teacher.side, format_layers(layers)))
