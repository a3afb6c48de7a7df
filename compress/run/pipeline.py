"""`compress run`: a recipe's steps in order, each skipped when its result is there and unchanged.

    world (demo only) -> prune -> data -> distill -> eval -> report

A teacher to be trained from scratch needs the data, so there: data -> teacher -> prune -> distill. A given one is cut
first: what is wrong with it shows before hours of preparing text; unless its layers are measured, or the cut
repaired, on that text.

`compress.run` and `compress.verify` alone know the steps, which meet in the run folder. Under a launcher all processes
train and evaluate together; the main one does the rest while others wait.
"""

import contextlib
import dataclasses
import functools
import shutil
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from compress.base.config import build_from, dump_yaml, to_dict
from compress.base.disk import owned, read_json, sha256_tree, write_json, write_text
from compress.base.errors import UsageError
from compress.base.processes import on_main
from compress.base.progress import say
from compress.base.records import manifest
from compress.data import INDEX, TokenStore, changes_since, options_unlike, prepare
from compress.demo import DEMO, write_world
from compress.distill import DistillConfig, DistillResult, distill
from compress.distill.loop.session import fingerprints
from compress.distill.publish import RECORD
from compress.distill.publish import changes_since as student_changes
from compress.distill.resources.start_up import check_start
from compress.evaluate import EvalConfig, compare_speed, evaluate_model, evaluation_inputs
from compress.model.files import model_fingerprint, resolve_model
from compress.model.remote_code import trusting
from compress.prune import (
    WITHOUT_TEXT,
    PruneConfig,
    RankAfterConfig,
    RankingConfig,
    prune,
    prune_inputs,
    prune_settings,
)
from compress.report import write_report
from compress.run.rank_after import prune_best, with_heal
from compress.run.recipe import DistillOptions, Recipe, load_recipe
from compress.run.scratch import initialise
from compress.run.step_results import is_done, make


def run_recipe(recipe: Recipe | str | Path, out: str | Path | None = None) -> Path:
    """Run a recipe to its report and return the run folder (default `runs/NAME`).

    Called again, it skips every step whose config, inputs and outputs are as its manifest says, redoes those
    that changed, and continues one that was cut.

    Raises:
        UsageError: the recipe is wrong, or a training that was cut was started with other settings.
        InputError: a model, text or benchmark that cannot be used.
        InterruptedRun: a signal came; what was done is saved.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    run = run_folder(recipe, out)
    with contextlib.ExitStack() as held:
        held.enter_context(trusting(recipe.teacher.trust_remote_code))
        on_main(lambda: held.enter_context(owned(run)))
        _run(recipe, run)
    return run


def _run(recipe: Recipe, run: Path) -> None:
    on_main(lambda: write_text(run / "recipe.yaml", dump_yaml(recipe)))
    recipe = resolve_paths(recipe, run)
    data_first = recipe.teacher.scratch is not None or needs_data(recipe.prune)
    on_main(lambda: make_world(recipe, run))
    if data_first:
        on_main(lambda: make_data(recipe, run / "data"))
    teacher = make_teacher(recipe, run)
    cut(recipe, teacher, run)
    if not data_first:
        on_main(lambda: make_data(recipe, run / "data"))
    train("distill", recipe.distill, student=run / "student-init", teacher=teacher, run=run, out=run / "student")
    evaluate_all(recipe, teacher, run)
    on_main(lambda: write_report(run))


def run_folder(recipe: Recipe, out: str | Path | None) -> Path:
    """Where a recipe runs: `out`, or runs/NAME."""
    return Path(out) if out is not None else Path("runs") / recipe.name


def resolve_paths(recipe: Recipe, run: Path) -> Recipe:
    """The recipe with `$RUN` replaced by the run folder and `$DEMO` by the folder of `compress.demo`."""

    def resolved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: resolved(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [resolved(item) for item in value]
        if isinstance(value, str):
            return value.replace("$RUN", run.as_posix()).replace("$DEMO", DEMO.as_posix())
        return value

    return build_from(Recipe, resolved(to_dict(recipe)), "the recipe")


def make_world(recipe: Recipe, run: Path) -> None:
    """Write the demo's world of text to RUN/world, when the recipe asks for one."""
    if (world := recipe.world) is not None:
        make("world", run / "world", "world.json", to_dict(world), {}, lambda out: write_world(out, world))


def tokenizer_folder(recipe: Recipe) -> Path:
    """Folder of the tokenizer that teacher and student share."""
    if recipe.teacher.scratch is not None:
        return Path(recipe.teacher.scratch.tokenizer)
    return resolve_model(str(recipe.teacher.model), recipe.teacher.revision)


def make_data(recipe: Recipe, out: Path) -> None:
    """Prepare the text into a token store, or continue; a store made from something else is made anew."""
    tokenizer = tokenizer_folder(recipe)
    if (out / INDEX).is_file():
        changes = changes_since(out, recipe.data, tokenizer)
        if not changes:
            say("data: done, unchanged.")
            return
        say(f"data: {'; '.join(changes)}; doing it again.")
        shutil.rmtree(out)
    say(f"data: {recipe.data.dataset} -> {out}")
    prepare(recipe.data, tokenizer, out)


def make_teacher(recipe: Recipe, run: Path) -> Path:
    """The teacher's folder; a teacher from scratch is trained into RUN/teacher first, by the distillation loop."""
    scratch = recipe.teacher.scratch
    if scratch is None:
        return on_main(lambda: resolve_model(str(recipe.teacher.model), recipe.teacher.revision))
    start = run / "teacher-init"
    config = {"architecture": scratch.architecture, "seed": scratch.train.seed}
    inputs = {"tokenizer": sha256_tree(Path(scratch.tokenizer), "*.json")}
    on_main(lambda: make("teacher-init", start, "init.json", config, inputs, lambda out: initialise(scratch, out)))
    train("teacher", scratch.train, student=start, teacher=None, run=run, out=run / "teacher")
    return run / "teacher"


def measures_data(prune: PruneConfig) -> bool:
    """Whether layers are to be measured, or the cut repaired, on the run's own text."""
    measured = prune.rank_after is not None or prune.by not in (None, *WITHOUT_TEXT)
    return prune.calibration is None and (prune.repair or measured)


def needs_data(prune: PruneConfig) -> bool:
    """Whether the run's own text is needed before the cut."""
    return prune.rank_after is not None or measures_data(prune)


def asked_cut(recipe: Recipe, run: Path) -> tuple[PruneConfig, str | RankingConfig | RankAfterConfig]:
    """A recipe's cut and its choice of layers, with the run's own text named where it is the one to measure on."""
    asked = recipe.prune
    if measures_data(asked):
        asked = dataclasses.replace(asked, calibration=str(run / "data"))
    choice = asked.choice
    if isinstance(choice, RankAfterConfig):
        choice = with_heal(choice, recipe.distill, run / "data")
    return asked, choice


def cut(recipe: Recipe, teacher: Path, run: Path) -> None:
    """Prune the teacher into RUN/student-init; layers are measured on RUN/data unless another text is named."""
    asked, choice = asked_cut(recipe, run)
    config = prune_settings(choice, **asked.how)
    out = run / "student-init"

    def done() -> bool:
        return is_done("prune", out, "prune.json", config, prune_inputs(teacher, choice, asked.repairing))

    if on_main(done):
        return
    if isinstance(choice, RankAfterConfig):
        result = prune_best(asked, choice, recipe.distill, teacher=str(teacher), out=out, work=run / "ranking")
    else:
        result = on_main(lambda: prune(teacher, out, choice, **asked.how))
    say(f"prune: {result.describe()}")


def distill_text(
    options: DistillOptions, *, student: str, teacher: str | None, run: Path, given: Collection[str] = ()
) -> DistillResult:
    """`compress distill`: prepare the text in RUN/data (or take a token store as it is) and train RUN/student on it.

    Called again, it continues or returns the finished result. `given` names the data options that the user wrote down,
    which a token store must have been made with.

    Raises:
        UsageError: a token store was made with others; and as `distill` and `prepare`.
    """
    with contextlib.ExitStack() as lock:
        on_main(lambda: lock.enter_context(owned(run)))
        store = on_main(lambda: _store_of(options, given, student=student, teacher=teacher, run=run))
        return distill(
            options.distill, student=student, teacher=teacher, data=store, out=run / "student", work=run / "train"
        )


def _store_of(options: DistillOptions, given: Collection[str], *, student: str, teacher: str | None, run: Path) -> Path:
    named = Path(options.data.dataset)
    if (named / INDEX).is_file():
        of_training = {"tokens"} if options.data.tokens == options.distill.tokens else set()  # as --tokens sets both
        if differing := options_unlike(named, options.data, set(given) - of_training):
            raise UsageError(
                f"{named} is a token store, and was made with other options: {'; '.join(differing)}. Leave them out, "
                "or name the text, to prepare it with them."
            )
        return named
    start, _ = check_start(options.distill, student=student, teacher=teacher, out=run / "student")
    prepare(options.data, start, run / "data")
    return run / "data"


def train(name: str, config: DistillConfig, *, student: Path, teacher: Path | None, run: Path, out: Path) -> None:
    """Train `student` into `out` on RUN/data, or continue; a result made from something else is made anew."""
    work = run / ("train" if out.name == "student" else f"{out.name}-train")

    def keep_only_current() -> None:
        inputs = fingerprints(student, teacher, TokenStore.open(run / "data"))
        done = (out / RECORD).is_file()
        if done and (changes := student_changes(out, config, inputs)):
            say(f"{name}: {'; '.join(changes)}; doing it again.")
            shutil.rmtree(out)
            shutil.rmtree(work, ignore_errors=True)
            done = False
        say(f"{name}: done, unchanged." if done else f"{name}: {student} -> {out}")

    on_main(keep_only_current)
    distill(config, student=student, teacher=teacher, data=run / "data", out=out, work=work)


def evaluate_all(recipe: Recipe, teacher: Path, run: Path) -> None:
    """Score teacher, cut and healed student into RUN/eval, then time them side by side in one run."""
    models = {"teacher": teacher, "student-init": run / "student-init", "student": run / "student"}
    config, text = recipe.eval.without_speed(), run / "data"
    for name, model in models.items():
        out = run / "eval" / f"{name}.json"
        reference = None if name == "teacher" else teacher
        if not on_main(functools.partial(_evaluated, name, config, model, reference, text, out)):
            say(f"eval {name}: {', '.join(config.tasks) or 'no benchmarks'}")
            evaluate_model(model, config, teacher=reference, text=text, out=out)
    if recipe.eval.speed:
        on_main(lambda: time_all(recipe, models, run / "eval"))


def _evaluated(name: str, config: EvalConfig, model: Path, teacher: Path | None, text: Path, out: Path) -> bool:
    inputs = evaluation_inputs(model, config, teacher=teacher, text=text, earlier=out)
    return is_done(f"eval {name}", out.parent, out.name, to_dict(config), inputs, [out])


def time_all(recipe: Recipe, models: Mapping[str, Path], folder: Path) -> None:
    """Measure the speed of all models interleaved, and write it into their eval JSONs and speed.json."""
    inputs, config = {name: model_fingerprint(path) for name, path in models.items()}, recipe.eval.only_speed()
    if not is_done("speed", folder, "speed.json", to_dict(config), inputs, [folder / "speed.json"]):
        started = time.monotonic()
        speed = compare_speed(models, config)
        record = manifest(config=to_dict(config), inputs=inputs, outputs={}, seconds=time.monotonic() - started)
        write_json(folder / "speed.json", {**speed, "manifest": record})
    speeds = read_json(folder / "speed.json")
    for name in models:
        scores = read_json(folder / f"{name}.json")
        if scores["speed"] != speeds[name]:
            write_json(folder / f"{name}.json", {**scores, "speed": speeds[name]})
