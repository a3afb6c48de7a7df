"""What can be known of a recipe's cuts and healings before they are made: of a chain, each stage by those before it."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from compress.base.disk import write_json
from compress.base.errors import CompressError, Faults, UsageError
from compress.data import TextFacts
from compress.distill.preflight import check_distill
from compress.model.facts import ModelFacts
from compress.model.files import copy_side_files
from compress.model.kinds import require_text_alone
from compress.prune import RankAfterConfig, check_prune, student_facts
from compress.prune.plan import Derivation
from compress.run.rank_after import check_ranking
from compress.run.recipe import Recipe
from compress.run.recipe_steps import measures_data
from compress.run.stages import Stage
from compress.run.steps import Left


@dataclasses.dataclass(frozen=True)
class StageFacts:
    """What is known of one cut and its healing; None where something is wrong with it."""

    stage: Stage
    cut: Derivation | None = None
    """Of a stage without a cut, the one that it starts from; None of a given student."""
    student: ModelFacts | None = None
    """What is trained: the cut, or a model that the recipe names."""
    teacher: ModelFacts | None = None


def check_chain(
    recipe: Recipe,
    teacher: ModelFacts | None,
    given: ModelFacts | None,
    text: TextFacts,
    left: Left,
    faults: Faults,
) -> tuple[StageFacts, ...]:
    """Find what would refuse the cuts and healings that are `left` to make; `given` is a student that is no cut."""
    found: list[StageFacts] = []
    with contextlib.ExitStack() as folders:
        source = teacher
        for stage in recipe.chain:
            own = Faults()
            facts = _cut(recipe, stage, source, found, left, own)
            student = given or facts.student
            facts = dataclasses.replace(
                facts, student=student, teacher=teacher if stage.teacher == "original" else source
            )
            _check_healing(recipe, facts, text, left, own)
            found.append(facts)
            faults.found += [_of_stage(fault, stage) for fault in own.found] if recipe.stages else own.found
            source = None
            if not stage.last and student is not None and facts.cut is not None:
                folder = Path(folders.enter_context(tempfile.TemporaryDirectory()))
                source = _healed(stage, student, facts.cut, folder)
    return tuple(found)


def _cut(
    recipe: Recipe,
    stage: Stage,
    source: ModelFacts | None,
    before: Sequence[StageFacts],
    left: Left,
    faults: Faults,
) -> StageFacts:
    """A stage's cut and the student that it makes of `source`, or those of the stage whose cut it starts from."""
    if stage.prune is None:
        known = before[stage.cut - 1] if before else StageFacts(stage)
        return StageFacts(stage, known.cut, known.student)
    if source is None:
        return StageFacts(stage)
    own = measures_data(stage.prune) or left.will_make(stage.prune.calibration)
    asked = faults if stage.step("prune") in left.groups else Faults()
    cut = check_prune(stage.prune.choice, source, asked, own_text=own, **stage.prune.how)
    if recipe.stages and cut is not None and not cut.plan.dropped_layers:
        layers = f"all {cut.plan.num_layers} layers of {source.name}"
        asked.found.append(UsageError(f"it keeps {layers}: name fewer, or cut nothing and write `teacher: self`."))
    return StageFacts(stage, cut, student_facts(cut, source, source.cuts if before else ()))


def _check_healing(recipe: Recipe, facts: StageFacts, text: TextFacts, left: Left, faults: Faults) -> None:
    stage, models, cache = facts.stage, (facts.student, facts.teacher), recipe.teacher.cache
    choice = None if stage.prune is None else stage.prune.choice
    if stage.step("prune") in left.groups and isinstance(choice, RankAfterConfig):
        check_ranking(stage.distill, choice, ", ".join(recipe.data.datasets), models, text, faults)
    if stage.step("distill") in left.groups:
        cached = None if cache is None or stage.teacher != "original" else cache.kind
        student, teacher = models
        if recipe.merge is not None and student is not None:
            name, config = student.name, student.config
            faults.of(lambda: require_text_alone(config, name, "Merging"))
        texts = {"": text} if recipe.merge is None else dict(zip(text.sources, text.parts, strict=True))
        found = {name: Faults() for name in texts}
        for name, part in texts.items():
            check_distill(stage.distill, student=student, teacher=teacher, text=part, cached=cached, faults=found[name])
        faults.found += _of_branches({name: each.found for name, each in found.items()})


def _of_branches(found: Mapping[str, Sequence[CompressError]]) -> list[CompressError]:
    """The faults of trainings on several texts, those that not all have with the text's name."""
    everywhere = set.intersection(*(set(map(str, faults)) for faults in found.values()))
    return [
        fault if str(fault) in everywhere else type(fault)(f"branch {name}: {fault}")
        for name, faults in found.items()
        for fault in faults
    ]


def _healed(stage: Stage, start: ModelFacts, cut: Derivation, folder: Path) -> ModelFacts:
    """The student of a stage before it is made, with its config.json and what lies beside it in `folder`."""
    copy_side_files(start.side, folder)
    write_json(folder / "config.json", cut.student_json)
    return dataclasses.replace(start, name=f"the student of stage {stage.number}", side=folder)


def _of_stage(fault: CompressError, stage: Stage) -> CompressError:
    return type(fault)(f"stage {stage.number}: {fault}")
