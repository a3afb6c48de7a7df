"""The steps of a sweep's runs, as the process that began it makes them, and those that work for it."""

from collections.abc import Iterable, Iterator, Sequence

from compress.base.config import to_dict
from compress.base.disk import sha256_json
from compress.base.errors import CompressError
from compress.base.progress import say
from compress.distill import DistillResult
from compress.distill.asked import Training
from compress.distill.distillation import distill_together, groups_together
from compress.distill.together import alike
from compress.run.pipeline import BegunRun
from compress.run.steps import Step
from compress.sweep.cases import Case
from compress.sweep.sharing import take_over

Numbered = dict[int, BegunRun]
"""Runs by their number in the sweep, in its order."""


def without_training(run: BegunRun) -> list[Step]:
    """The steps of a run that do not follow from the student's training."""
    (training,) = (step for step in run.steps if step.name == "distill")
    return [step for step in run.steps if step is not training and not step.follows([training.group])]


def with_training(run: BegunRun) -> list[Step]:
    """The training, and what follows from it."""
    before = without_training(run)
    return [step for step in run.steps if step not in before]


def measured(run: BegunRun) -> list[Step]:
    """What follows from the training, but for the speed, which is measured where nothing else runs."""
    return [step for step in with_training(run)[1:] if not step.name.startswith("speed")]


def make_steps(cases: Sequence[Case], runs: Numbered, steps: dict[int, list[Step]]) -> None:
    """Make `steps` of each run, by its number, or take them over from a run before it."""
    earlier: list[Step] = []
    for number, own in steps.items():
        say(f"-- {cases[number].name}")
        for step in own:
            if take_over(step, [other for other in earlier if other.name == step.name]):
                say(f"{step.name}: as of the run before.")
            else:
                runs[number].make(step)
        earlier += own


def grouped(cases: Sequence[Case], numbers: Iterable[int]) -> list[list[int]]:
    """These runs in groups that share the teacher's forward pass, memory permitting."""
    left = list(numbers)
    asked = [cases[number].recipe for number in left]
    shared = [sha256_json([each and to_dict(each) for each in (of.teacher, of.trim, of.data)]) for of in asked]
    groups = alike([(recipe.distill, same) for recipe, same in zip(asked, shared, strict=True)])
    return [[left[place] for place in group] for group in groups]


def work_of(case: Case) -> float:
    """What a training takes beside those of other cases: its tokens."""
    asked = case.recipe
    return float(asked.distill.tokens or (asked.data.tokens or 1) * asked.distill.epochs)


def train(cases: Sequence[Case], runs: Numbered, *, sharing: int = 1) -> Iterator[dict[int, str | None]]:
    """Train what is not trained yet, group by group: of each run, by number, None or what ended its training.

    So many processes are `sharing` the device's memory.
    """
    left = dict[int, Training]()
    for number, run in runs.items():
        step = with_training(run)[0]
        assert step.training is not None
        if step.state()[0] != "done":
            left[number] = step.training()
    yield dict.fromkeys(runs.keys() - left.keys())
    numbers = list(left)
    for group in groups_together(list(left.values()), sharing=sharing):
        members = [numbers[place] for place in group]
        say(f"distill: {'; '.join(cases[number].name for number in members)}")
        results = distill_together([left[number] for number in members])
        yield {number: _why(result) for number, result in zip(members, results, strict=True)}


def _why(result: DistillResult | CompressError) -> str | None:
    return None if isinstance(result, DistillResult) else str(result)
