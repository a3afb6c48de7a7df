"""Everything that can be known of a run is asked first: each step's owner says what would refuse its step.

`compress run` asks before it makes anything, and `--dry-run` asks the same. What a step before will make (the demo's
world, a teacher from scratch) is known as far as the recipe says it, and asked again once it is there.
"""

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from compress.base.documents import load_yaml
from compress.base.errors import Faults, UsageError
from compress.base.outputs import Output, check_outputs, has_fields, into
from compress.data import TextFacts, TokenStore, check_data, facts_of_plan, facts_of_store, fit_rows, require_apart
from compress.distill.preflight import check_caching, check_distill, check_tokens, other_teachers
from compress.evaluate import EvalConfig
from compress.evaluate.chat import check_chat
from compress.evaluate.preflight import check_evaluation
from compress.model.cuts import kept_layers
from compress.model.facts import ModelFacts, look_at_config, look_at_model
from compress.model.kinds import kind_of
from compress.model.load import load_config, load_tokenizer
from compress.prune import RankAfterConfig, check_grow, check_trim
from compress.prune.choose.spec import format_layers
from compress.prune.plan import Derivation, cast_derivation, derive
from compress.report import report_outputs
from compress.run.caching import cache_folder
from compress.run.chain_checks import StageFacts, check_chain
from compress.run.layout import Layout
from compress.run.rank_after import ranking_output, task_scoring
from compress.run.recipe import Recipe, is_resolved, recipe_output
from compress.run.scratch import check_vocabulary, scratch_config
from compress.run.sections import GivenStudent, ScratchTeacher
from compress.run.steps import Left, Step
from compress.run.target import find_layers, measured_seconds, timing_output
from compress.run.target_config import TargetConfig
from compress.ship import check_formats


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of a run before it begins; None where something is wrong with it."""

    teacher: ModelFacts | None
    stages: tuple[StageFacts, ...]
    """Of the recipe's chain."""
    text: TextFacts
    others: tuple[ModelFacts, ...] = ()
    """Teachers beside the first."""


def fit_recipe(recipe: Recipe, layout: Layout, *, measure: bool) -> Recipe:
    """The recipe with rows of text that its teacher reads, if it says nothing of their length (see `fit_rows`), and
    with as many layers as its target leaves: with `measure`, where that takes it, by timings of this device. Where the
    teacher is a masked LM, no writing is measured.

    Raises:
        UsageError: the target is out of reach.
    """
    faults, scratch = Faults(), recipe.teacher.scratch
    if scratch is None:
        teacher = look_at_config(str(recipe.teacher.model), faults, recipe.teacher.revision)
    else:
        config = faults.of(lambda: scratch_config(scratch.architecture))
        teacher = None if config is None else ModelFacts("a teacher trained from scratch", config, Path())
    if recipe.target is not None and recipe.target.sizes_the_cut and teacher is not None:
        recipe = recipe.with_depth(_depth(recipe.target, recipe, teacher, layout, measure=measure))
    if teacher is not None and kind_of(teacher.config) == "masked":
        recipe = dataclasses.replace(recipe, eval=recipe.eval.of_masked())
    student = None if recipe.student is None else look_at_config(recipe.student.model, faults, recipe.student.revision)
    return dataclasses.replace(recipe, data=fit_rows(recipe.data, [teacher, student]))


def _depth(target: TargetConfig, recipe: Recipe, teacher: ModelFacts, layout: Layout, *, measure: bool) -> int:
    """How many layers a target leaves; raises as `find_layers`."""
    with tempfile.TemporaryDirectory() as folder:
        if recipe.teacher.scratch is not None:  # which has no folder with its config yet
            teacher.config.save_pretrained(folder)
            teacher = dataclasses.replace(teacher, side=Path(folder))
        seconds = None
        if target.decode_speedup is not None:
            seconds = measured_seconds(teacher, recipe.eval.afterwards, layout.timing, measure=measure)
        return find_layers(target, teacher, seconds)


def check_run(recipe: Recipe, layout: Layout, left: Left, faults: Faults, *, download: bool) -> Known:
    """Find what would refuse the steps of a resolved recipe that are `left` to make.

    Of what lies on the hub only small files are fetched, and with `download` the benchmarks' data sets.
    """
    with _teacher(recipe, layout, left, faults) as teacher:
        if "trim" in left.groups and teacher is not None and recipe.trim is not None:
            named = recipe.data.datasets if recipe.trim.data is None else (recipe.trim.data,)
            check_trim(recipe.trim, teacher, recipe.data, faults, own_text=any(map(left.will_make, named)))
        given = _given_student(recipe.student, faults)
        text = _text(recipe, layout, left, given or teacher, faults)
        if given is not None and teacher is not None and "distill" in left.groups:
            faults.of(lambda: _check_tokens(recipe, given, teacher, text))
        stages = check_chain(recipe, teacher, given, text, left, faults)
        if "teacher" in left.groups and (training := recipe.teacher.training) is not None:
            check_distill(training, student=teacher, teacher=None, text=text, faults=faults)
        if "cache" in left.groups:
            assert recipe.teacher.cache is not None
            out = cache_folder(recipe.teacher.cache, layout)
            check_caching(recipe.teacher.cache, recipe.distill, teacher=teacher, text=text, out=out, faults=faults)
        if "grow" in left.groups and teacher is not None and recipe.grow is not None:
            own = recipe.grow.calibration is None or left.will_make(recipe.grow.calibration)
            check_grow(recipe.grow, teacher, _whole_cut(teacher, stages), faults, own_text=own)
        choice = recipe.prune.choice
        scoring = task_scoring(choice, recipe.eval.afterwards) if isinstance(choice, RankAfterConfig) else None
        if "prune" in left.groups and scoring is not None:
            _check_evaluations(recipe, scoring, teacher, left, faults, download=download)
        if "distill" in left.groups and recipe.eval.of_training is not None:
            _check_evaluations(recipe, recipe.eval.of_training, teacher, left, faults, download=download)
        if "export" in left.groups and recipe.export is not None and (student := stages[-1].student) is not None:
            check_formats(recipe.export, student, faults)
        if "eval" in left.groups:
            _check_evaluations(recipe, recipe.eval.afterwards, teacher, left, faults, download=download)
            if given is not None:
                faults.of(lambda: check_chat(recipe.eval, given))
        return Known(teacher, stages, text, other_teachers(recipe.distill, Faults()))


def _whole_cut(teacher: ModelFacts, stages: Sequence[StageFacts]) -> Derivation | None:
    """The last cut as one of the run's teacher; None where something is wrong with it."""
    last = stages[-1]
    if last.cut is None or last.student is None or len(last.student.cuts) == 1:
        return last.cut
    kept = kept_layers(last.student.cuts, teacher.config)
    assert kept is not None
    return cast_derivation(derive(teacher.name, teacher.side, format_layers(kept)), last.cut.plan.dtype)


def check_run_folder(recipe: Recipe, layout: Layout, steps: Sequence[Step], faults: Faults) -> None:
    """Find what of a run's folder is not the run's, or would become part of the text that it reads."""
    redo = Output(layout.redo, "a run's", has_fields("groups", "aside", "moved"))
    own = [run_output(layout.run), run_output(layout.old), recipe_output(layout.recipe), redo]
    ranking = [] if recipe.prune.rank_after is None else [ranking_output(layout.ranking)]
    left = [output for step in steps for output in step.outputs if not step.only_reads(output)]
    timing = [] if recipe.target is None else [timing_output(layout.timing)]
    check_outputs([*own, *ranking, *timing, *left, *report_outputs(layout.run)], faults)
    faults.of(lambda: _check_name(recipe, layout))
    for text in filter(None, (*recipe.data.datasets, recipe.eval.other_text)):
        faults.of(functools.partial(require_apart, text, layout.run))


def run_output(folder: Path) -> Output:
    """The folder of a run."""
    return into(folder, "a folder for a run")


def _check_name(recipe: Recipe, layout: Layout) -> None:
    """Refuse the folder of another recipe's run.

    Raises:
        UsageError: its recipe has another name.
    """
    if not layout.recipe.is_file() or not is_resolved(layout.recipe):
        return
    name = load_yaml(layout.recipe).data["name"]
    if name != recipe.name:
        raise UsageError(
            f"{layout.run} is the folder of a run of the recipe {name!r}, and this one is {recipe.name!r}: name "
            "another folder with --out."
        )


@contextlib.contextmanager
def _teacher(recipe: Recipe, layout: Layout, left: Left, faults: Faults) -> Iterator[ModelFacts | None]:
    """What is known of the teacher; of one to be trained here, what the recipe says of it, and of one to be trimmed,
    what it is before."""
    scratch = recipe.teacher.scratch
    if recipe.trim is not None and "trim" not in left.groups:
        yield look_at_model(str(layout.trimmed), faults)
    elif scratch is None:
        name, revision = str(recipe.teacher.model), recipe.teacher.revision
        yield look_at_model(name, faults, revision)
    elif (layout.teacher / "config.json").is_file():
        yield look_at_model(str(layout.teacher), faults)
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield faults.of(lambda: _to_be_trained(scratch, left, Path(folder)))


def _given_student(config: GivenStudent | None, faults: Faults) -> ModelFacts | None:
    """What is known of a student that is no cut."""
    return None if config is None else look_at_model(config.model, faults, config.revision)


def _check_tokens(recipe: Recipe, student: ModelFacts, teacher: ModelFacts, text: TextFacts) -> None:
    """Raises as `check_tokens`."""
    cached, tuned = recipe.teacher.cache is not None, recipe.teacher.finetune is not None
    check_tokens(recipe.distill, student, teacher, cached=cached, marked=text.marked, finetuned=tuned)


def _to_be_trained(scratch: ScratchTeacher, left: Left, folder: Path) -> ModelFacts:
    config = scratch_config(scratch.architecture)
    if not left.will_make(scratch.tokenizer):
        tokenizer = load_tokenizer(Path(scratch.tokenizer))
        check_vocabulary(scratch, config, tokenizer)
        tokenizer.save_pretrained(folder)
    config.save_pretrained(folder)
    return ModelFacts("a teacher trained from scratch", load_config(folder), folder)


def _text(recipe: Recipe, layout: Layout, left: Left, teacher: ModelFacts | None, faults: Faults) -> TextFacts:
    if "data" not in left.groups:
        store = faults.of(lambda: TokenStore.open(layout.data))
        return facts_of_plan(recipe.data) if store is None else facts_of_store(store)
    if any(map(left.will_make, recipe.data.datasets)):
        return facts_of_plan(recipe.data)
    return check_data(recipe.data, teacher if _tokenizer_is_there(recipe, left) else None, layout.data, faults)


def _tokenizer_is_there(recipe: Recipe, left: Left) -> bool:
    return recipe.teacher.scratch is None or not left.will_make(recipe.teacher.scratch.tokenizer)


def _check_evaluations(
    recipe: Recipe, config: EvalConfig, teacher: ModelFacts | None, left: Left, faults: Faults, *, download: bool
) -> None:
    known = dataclasses.replace(config, other_text=None) if left.will_make(config.other_text) else config
    if not _tokenizer_is_there(recipe, left):
        known = dataclasses.replace(known, chat_template=False, fewshot_as_multiturn=None)
    check_evaluation(known, model=teacher, teacher=None, text=None, faults=faults)
    if config.tasks and not left.will_make(config.datasets_root) and not left.will_make(config.task_folder):
        from compress.evaluate.harness.catalog import check_tasks

        faults.of(lambda: check_tasks(config, download=download))
