"""The recipe: everything a run depends on, as one frozen dataclass made of the steps' own configs."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from compress.base.config import build, config, dump_yaml, to_dict
from compress.base.currency import Before, as_before, is_complete
from compress.base.disk import write_text
from compress.base.documents import dump_data, load_yaml, parse_yaml
from compress.base.errors import UsageError
from compress.base.outputs import Output
from compress.data import DataConfig
from compress.demo import WorldConfig
from compress.distill import DistillConfig
from compress.prune import GrowConfig, PruneConfig, TrimConfig
from compress.run.sections import GivenStudent, RunEvalConfig, SweepConfig, TeacherConfig
from compress.run.stages import Stage, StageConfigs, chain, names_layers
from compress.run.target_config import TargetConfig
from compress.ship import ExportConfig, Merging

_LONGEST_NAME = 200


def plain_name(name: str) -> str:
    """A name that a folder can have.

    Raises:
        ValueError: it is empty, a path, hidden, or too long.
    """
    if not name.strip() or name != name.strip() or name.startswith(".") or not name.isprintable():
        raise ValueError("write a plain name that begins with no dot and no space, e.g. llama-half-depth")
    if "/" in name or "\\" in name:
        raise ValueError("a name is no path: leave out the slashes (where a run goes, --out says)")
    if len(name.encode()) > _LONGEST_NAME:
        raise ValueError(f"at most {_LONGEST_NAME} bytes make a folder's name")
    return name


@config
class Recipe:
    """A run. In any value, `$RUN` stands for the run folder and `$DEMO` for the installed demo's."""

    name: Annotated[str, AfterValidator(plain_name)]
    """Names the run, and its folder runs/NAME by default: a plain name, and no path."""
    teacher: TeacherConfig
    """The model to make smaller."""
    world: WorldConfig | None = None
    """Generate the demo's world of text into RUN/world first."""
    student: Annotated[GivenStudent | None, Before(None)] = None
    """The model to train where it is no cut of the teacher."""
    trim: Annotated[TrimConfig | None, Before(None)] = None
    """Trim the teacher's vocabulary to the run's text first. What comes of it, RUN/teacher-trimmed, is the teacher of
    all that follows: the student is cut from it, and its probabilities are over the ids that stay."""
    prune: PruneConfig = PruneConfig()
    """Which layers stay."""
    target: Annotated[TargetConfig | None, Before(None)] = None
    """What to reach, in place of a number of layers and of a fixed end: {params: 0.6x, kept: 95%}."""
    data: DataConfig
    """The text to heal on."""
    distill: DistillConfig = DistillConfig()
    """How to heal."""
    merge: Annotated[Merging | None, Before(None)] = None
    """Heal a branch of the cut on each source of the text, RUN/branches/N, and merge them: the merged model is the
    healed student. {method: ties}; docs/merging.md has the methods."""
    grow: Annotated[GrowConfig | None, Before(None)] = None
    """Models of sizes between the healed student and its teacher, RUN/grow/SIZE."""
    export: Annotated[ExportConfig | None, Before(None)] = None
    """Other formats of the healed student, RUN/export/FORMAT."""
    eval: RunEvalConfig = RunEvalConfig()
    """What to measure."""
    sweep: Annotated[SweepConfig | None, Before(None)] = None
    """What `compress sweep` runs in place of one run."""
    stages: Annotated[StageConfigs, Before(())] = ()
    """Cut and heal several times, each stage the student of the one before; the last one's student is the run's."""

    def __post_init__(self) -> None:
        if self.student is not None and self.prune != PruneConfig():
            raise ValueError("a given `student` is trained as it is: leave `prune` out, or `student`")
        if self.student is not None and self.grow is not None:
            raise ValueError("a given `student` is no cut of the teacher, so nothing can be put back: leave `grow` out")
        if self.grow is not None and not self.grow.layers:
            raise ValueError("`grow` needs `layers`, the sizes to make: write `grow: {layers: [20, 24]}`")
        if self.student is not None and self.stages:
            raise ValueError("a chain cuts the teacher: leave `stages` out, or `student`")
        if self.target is not None:
            self._take_target(self.target)
        if self.stages and self.prune.experts is not None:
            raise ValueError(
                "each of `stages` cuts layers: leave `prune.experts` out, or drop experts of the teacher first"
            )
        if self.stages and names_layers(self.prune):
            raise ValueError(
                "each of `stages` says which layers stay: leave keep, layers, by and rank_after out of `prune`"
            )
        chain(self.stages, self.prune, self.distill)
        if self.merge is not None:
            self._check_merge(self.merge)
        if self.trim is not None:
            self._check_trim()

    def _check_trim(self) -> None:
        """Refuse models beside the trimmed teacher that would have another vocabulary."""
        if self.teacher.scratch is not None:
            raise ValueError("a teacher from scratch has the vocabulary of its tokenizer: leave `trim` out")
        if self.student is not None:
            raise ValueError(
                "`trim` is of the teacher, and a given `student` would keep its own ids: run `compress trim` on both, "
                "with the same text, and name what comes of it"
            )
        if any(stage.distill.mixture is not None for stage in self.chain):
            raise ValueError(
                "`trim` is of the first teacher, and those of `distill.mixture` would keep their own ids: run "
                "`compress trim` on each, with the same text, and name what comes of it"
            )

    def _check_merge(self, merge: Merging) -> None:
        """Refuse what makes no branches, or is made of one training."""
        sources = len(self.data.sources or ())
        if sources < 2:
            raise ValueError(
                "`merge` puts branches together that are healed on one source each: write two or more of them, data: "
                "{sources: [{dataset: A}, {dataset: B}]}"
            )
        if merge.method == "slerp" and sources != 2:
            raise ValueError(f"slerp is between two models, and the text has {sources} sources: use another method")
        if merge.weights is not None and len(merge.weights) != sources:
            raise ValueError(f"`merge.weights` has {len(merge.weights)} numbers for {sources} sources of the text")
        made = {
            "stages": bool(self.stages),
            "sweep": self.sweep is not None,
            "target.kept": self.target is not None and self.target.kept is not None,
            "eval.during": self.eval.during is not None,
            "teacher.cache": self.teacher.cache is not None,
        }
        if named := [name for name, is_asked in made.items() if is_asked]:
            raise ValueError(f"`merge` makes a training for each source: leave {' and '.join(named)} out, or `merge`")

    def _take_target(self, target: TargetConfig) -> None:
        """Cut as the target says, once it is known how many layers that leaves."""
        if target.kept is not None and self.eval.during is None:
            raise ValueError(
                "what is kept is measured while the student is trained: write which tasks, eval: {during: {tasks: "
                "[arc_easy]}}"
            )
        if not target.sizes_the_cut:
            return
        if self.student is not None or self.stages:
            raise ValueError("a `target` of size or speed is one of a cut of the teacher: leave it out")
        if self.trim is not None or self.prune.experts is not None:
            raise ValueError(
                "a `target` of size or speed says how many layers stay: run `compress trim`, or drop experts, before it"
            )
        if names_layers(self.prune) and (target.layers is None or target.cut(self.prune) != self.prune):
            raise ValueError(
                "`target` says how many layers stay, and by what: leave keep, layers, by and rank_after out of `prune`"
            )
        object.__setattr__(self, "prune", target.cut(self.prune))

    def with_depth(self, layers: int) -> "Recipe":
        """The recipe whose target leaves so many layers."""
        assert self.target is not None
        unnamed = dataclasses.replace(self.prune, keep=None, layers=None, by=None, rank_after=None)
        return dataclasses.replace(self, prune=unnamed, target=dataclasses.replace(self.target, layers=layers))

    @property
    def chain(self) -> tuple[Stage, ...]:
        """What is cut and healed, one after the other: once without `stages`."""
        return chain(self.stages, None if self.student else self.prune, self.distill)


def recipe_output(path: Path) -> Output:
    """The recipe in a run folder, which a run writes with every default in it."""
    return Output(path, "the recipe of a run", is_resolved)


def is_resolved(path: Path) -> bool:
    """Whether a file is a recipe as a run writes it: every option of its time in it, and not a word more."""
    return _resolved(path) is not None


def _resolved(path: Path) -> dict[str, Any] | None:
    """What a recipe says that a run wrote."""
    try:
        text = path.read_text(encoding="utf-8")
        data = parse_yaml(text, path.name).data
    except (OSError, ValueError, UsageError):
        return None
    return data if is_complete(Recipe, data) and dump_data(data) == text else None


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe with every option in it; a file that an earlier version wrote and that says the same stays."""
    written = _resolved(path)
    if written is None or as_before(Recipe, written) != as_before(Recipe, to_dict(recipe)):
        write_text(path, dump_yaml(recipe))


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply `a.b=value` overrides and validate it.

    Raises:
        UsageError: naming the dotted path, the line and, for an unknown key, the nearest known one.
    """
    document = load_yaml(Path(source))
    if is_resolved(Path(source)):
        _read_as_meant(document.data)
    document.override(overrides)
    return build(Recipe, document)


def _read_as_meant(resolved: dict[str, Any]) -> None:
    """Put 1 for the 1.0 that an earlier version wrote down for every step, where a user's may mean two things."""
    for at in (("distill",), ("teacher", "scratch", "train")):
        options: Any = resolved
        for key in at:
            options = options.get(key) if isinstance(options, dict) else None
        if isinstance(options, dict):
            once = [name for name in ("heldout_every", "checkpoint_every") if options.get(name) == 1]
            options |= dict.fromkeys(once, 1)
