"""Nothing finished is destroyed: what is no longer current stops a run, and `--redo STEP` moves it aside.

What was moved lies in RUN/old/STEP-DATE. RUN/redo.json says what is being done anew until the run is finished: so a run
that is cut in between, even within the moving, goes on where it was with or without `--redo`, and what was made since
is not moved again.
"""

import dataclasses
import datetime
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.base.disk import fsync_path, read_json, write_json
from compress.base.errors import UsageError
from compress.base.progress import say
from compress.run.layout import Layout
from compress.run.steps import State, Step, states

Standing = Mapping[str, tuple[State, list[str]]]
"""Where each step stands, by name."""


@dataclasses.dataclass
class Redo:
    """What is done anew: nothing, until the user asks for it."""

    layout: Layout
    date: str
    """Of its beginning: part of the names of the folders in RUN/old."""
    groups: list[str] = dataclasses.field(default_factory=list)
    """What the user asked for."""
    aside: list[str] = dataclasses.field(default_factory=list)
    """Steps whose earlier results are to lie in RUN/old before anything is made."""
    moved: list[str] = dataclasses.field(default_factory=list)
    """Steps whose earlier results lie there by now."""

    @classmethod
    def under_way(cls, layout: Layout) -> "Redo":
        """What redo.json says, or an empty one."""
        if not layout.redo.is_file():
            return cls(layout, _now())
        known: dict[str, Any] = read_json(layout.redo)
        return cls(layout, **known)

    def save(self) -> None:
        """Write redo.json."""
        write_json(self.layout.redo, {k: v for k, v in vars(self).items() if k != "layout"})

    def finish(self) -> None:
        """Forget it: all is done."""
        self.layout.redo.unlink(missing_ok=True)

    def allows(self, step: Step) -> bool:
        """Whether the user asked for the step, or for one that it follows from, and it was not moved yet."""
        return step.name not in self.moved and (step.group in self.groups or step.follows(self.groups))

    def require(self, step: Step, differing: list[str], steps: Sequence[Step]) -> None:
        """Refuse to do a step anew that the user did not ask for.

        Raises:
            UsageError: what differs, and what to do.
        """
        if not self.allows(step):
            raise UsageError(_refusal([step], {step.name: ("changed", differing)}, steps, self.layout))

    def ask(self, groups: Sequence[str], steps: Sequence[Step], found: Standing) -> None:
        """Note what the user asks for: of each group the steps that are no longer current, or all if all are.

        What an earlier call moved, and what was made since is current, is not asked for again.
        """
        for group in groups:
            own = [step.name for step in steps if step.group == group]
            changed = [name for name in own if found[name][0] == "changed"]
            wanted = changed or own
            if group in self.groups:
                wanted = [name for name in changed if name in self.moved or name not in self.aside]
            if again := [name for name in wanted if name in self.moved]:
                self.date = _now(after=self.date)
                self.moved = [name for name in self.moved if name not in again]
            self.groups = list(dict.fromkeys([*self.groups, group]))
            self.aside = list(dict.fromkeys([*self.aside, *wanted]))

    def move(self, steps: Sequence[Step]) -> None:
        """Move what the steps left to RUN/old, the latest step's first."""
        for step in reversed(steps):
            found = [place for place in step.places if place.exists()]
            folder = self.layout.old / f"{step.group}-{self.date}"
            for place in found:
                _move(place, _free(folder / place.relative_to(self.layout.run)))
            if found:
                _keep_recipe(self.layout, folder)
                say(f"{step.name}: what was there is in {folder}.")
            self.moved.append(step.name)
            self.save()


def begin(steps: Sequence[Step], layout: Layout, asked: Sequence[str]) -> Redo:
    """Move the results of the steps that are `asked` for aside, if nothing else is in the way; raises as `intended`."""
    redo = intended(steps, layout, asked, states(steps))
    if todo := [step for step in steps if step.name in redo.aside and step.name not in redo.moved]:
        follow = _following(steps, redo.groups)
        say(f"Doing anew: {', '.join(redo.groups)}.{f' What follows if it changes: {follow}.' if follow else ''}")
        redo.save()
        redo.move(todo)
    return redo


def intended(steps: Sequence[Step], layout: Layout, asked: Sequence[str], found: Standing) -> Redo:
    """What would be done anew if a run began now. Nothing is written.

    Raises:
        UsageError: a name that is no step, or results that are no longer current: which, what differs, what to do.
    """
    groups = list(dict.fromkeys(step.group for step in steps))
    for name in asked:
        if name not in groups:
            raise UsageError(f"--redo {name}: this run has no such step; choose from {', '.join(groups)}.")
    redo = Redo.under_way(layout)
    redo.ask(asked, steps, found)
    if refused := [step for step in steps if found[step.name][0] == "changed" and not redo.allows(step)]:
        raise UsageError(_refusal(refused, found, steps, layout))
    for step in (step for step in steps if step.name in redo.aside and step.name not in redo.moved):
        for place in step.places:
            if place.exists() and not place.is_relative_to(layout.run):
                raise UsageError(
                    f"--redo {step.group}: {place} lies outside of the run, which may not be the only one that uses "
                    "it. Name another folder in the recipe, or remove this one."
                )
    return redo


def _refusal(refused: Sequence[Step], found: Standing, steps: Sequence[Step], layout: Layout) -> str:
    """What is no longer current, why, and what to do about it."""
    lines = [made_otherwise(step, found[step.name][1]) for step in refused]
    groups = list(dict.fromkeys(step.group for step in refused))
    roots = [g for g in groups if any(not s.follows({*groups} - {g}) for s in refused if s.group == g)]
    options, follow = " ".join(f"--redo {group}" for group in roots), _following(steps, roots)
    then = f"; if it changes, so will {follow}" if follow else ""
    advice = (
        f"Nothing was changed. To make it anew, add {options}: what is there moves to {layout.old}{then}. To keep it "
        "as it is, go back to those settings, or name another folder with --out."
    )
    return "\n".join([*lines, advice])


def made_otherwise(step: Step, differing: Sequence[str]) -> str:
    """What of a step is there, and what differs, as a sentence."""
    made = f"{step.record} was made"
    if not step.record.is_file():
        made = f"{next(place for place in step.places if place.exists())} was begun"
    return f"{step.name}: {made} otherwise: {'; '.join(differing)}."


def _following(steps: Sequence[Step], groups: Sequence[str]) -> str:
    """Names of the steps that are made from the results of these groups."""
    return ", ".join(step.name for step in steps if step.follows(groups) and step.group not in groups)


def _keep_recipe(layout: Layout, folder: Path) -> None:
    """Leave the recipe that the run had beside what it made."""
    if layout.recipe.is_file() and not (folder / "recipe.yaml").exists():
        shutil.copyfile(layout.recipe, folder / "recipe.yaml")


def _now(after: str = "") -> str:
    """The time as part of a folder's name, and never the one that is given."""
    now = datetime.datetime.now().strftime("%Y-%m-%dT%H.%M.%S")
    return now if not after.startswith(now) else f"{after}.1"


def _free(path: Path) -> Path:
    """A path that nothing has: this one, or with a number after it."""
    names = (path, *(path.with_name(f"{path.name}-{number}") for number in range(2, 1000)))
    return next(name for name in names if not os.path.lexists(name))


def _move(place: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    os.rename(place, to)
    fsync_path(to.parent)
    fsync_path(place.parent)
