"""The steps of a run: what each is made from, whether what is there is current, and how it is made.

`compress run`, `compress verify` and `--dry-run` walk the same steps. A step that is done is skipped; one that is no
longer current is said, and left as it is until the user asks for it (see `compress.run.redo`).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from compress.base.currency import Inputs, changes, input_changes, inputs_now, setting_changes
from compress.base.disk import read_json
from compress.base.errors import CompressError
from compress.base.outputs import Output, has_record
from compress.distill.asked import Training
from compress.run.finders import if_there

State = Literal["done", "changed", "under way", "not made"]


def _nothing_begun() -> list[str]:
    return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One step of one run."""

    name: str
    """What the user calls it: distill, `eval teacher`."""
    group: str
    """What `--redo` calls it: all steps of a group are done anew together."""
    after: frozenset[str] = frozenset()
    """Groups whose results it is made from, directly or by way of others."""
    record: Path
    """The file whose `manifest` says what the result was made from; its folder holds the outputs."""
    kind: type | None
    """The config that its settings are options of."""
    settings: Mapping[str, Any]
    inputs: Inputs
    outputs: tuple[Output, ...]
    """All that it leaves, in the order in which it is moved aside: the record's comes last."""
    make: Callable[[], None]
    training: Callable[[], Training] | None = None
    """What it trains, where that can be done beside other trainings."""
    together: bool = False
    """Whether all processes of a launch make it together, rather than the main one alone."""
    intact: Callable[[Mapping[str, Any]], list[str]] | None = None
    """What of the outputs is not as it was written, given the manifest; None compares the SHA-256 of all."""
    begun: Callable[[], list[str]] = _nothing_begun
    """What differs between a result that is under way and one that would be made now."""

    @property
    def places(self) -> tuple[Path, ...]:
        """Where its outputs are."""
        return tuple(output.path for output in self.outputs)

    def state(self) -> tuple[State, list[str]]:
        """Where the step stands, and what differs if what it left is not what would be made now.

        Inputs that are not here (a disk that is not mounted, a result of a step before that is not made yet) are
        no evidence of a change.
        """
        if self.is_finished():
            found = self.changes()
            return ("changed" if found else "done"), found
        if found := self.begun():
            return "changed", found
        return ("under way" if any(place.exists() for place in self.places) else "not made"), []

    def is_finished(self) -> bool:
        """Whether its result is there, with a record of ours; what else lies there is the user's."""
        result = self.outputs[-1]
        return self.record.is_file() and result.ours is not None and result.ours(result.path)

    def only_reads(self, output: Output) -> bool:
        """Whether an output is a link by which a finished result was put elsewhere, and is not written any more."""
        return output.folder and output.path.is_symlink() and self.is_finished()

    def changes(self) -> list[str]:
        """What differs between the result that is there and one that would be made now."""
        made = read_json(self.record)["manifest"]
        now = inputs_now(self.inputs)
        if self.intact is None:
            return changes(self.record.parent, made, kind=self.kind, config=self.settings, inputs=now)
        found = setting_changes(self.kind, made["config"], self.settings) + input_changes(made["inputs"], now)
        return found + self.intact(made)

    def follows(self, groups: Iterable[str]) -> bool:
        """Whether it is made from the results of one of these groups."""
        return not self.after.isdisjoint(groups)


def folder_step(
    name: str,
    what: str,
    record: Path,
    make: Callable[[], None],
    *,
    kind: type,
    settings: Mapping[str, Any],
    inputs: Inputs,
    after: frozenset[str],
    group: str | None = None,
    together: bool = False,
) -> Step:
    """A step that leaves one folder, that of its `record`, which holds `what`. Its group is its name, unless another is
    said; what of its inputs cannot be read now can also not be compared."""
    return Step(
        name=name,
        group=group or name,
        after=after,
        record=record,
        kind=kind,
        settings=settings,
        inputs={role: functools.partial(if_there, find) for role, find in inputs.items()},
        outputs=(Output(record.parent, what, has_record(record.name), folder=True),),
        make=make,
        together=together,
    )


def unless_opened(open_: Callable[[Path], Any], out: Path) -> Callable[[Mapping[str, Any]], list[str]]:
    """`intact` of a result whose reader checks its record and the sizes of its files, and leaves their content alone:
    to read hundreds of gigabytes is `compress verify`'s business."""

    def intact(_: Mapping[str, Any]) -> list[str]:
        try:
            open_(out)
        except CompressError as error:
            return [str(error)]
        return []

    return intact


def states(steps: Sequence[Step]) -> dict[str, tuple[State, list[str]]]:
    """Where each step stands, by name, and what differs."""
    return {step.name: step.state() for step in steps}


def groups_of(steps: Iterable[Step]) -> frozenset[str]:
    """The groups that the steps belong to."""
    return frozenset(step.group for step in steps)


class Left(NamedTuple):
    """The steps that are left to make."""

    groups: frozenset[str]
    places: tuple[Path, ...]
    """Where they will leave what they make."""

    @classmethod
    def of(cls, steps: Sequence[Step]) -> "Left":
        """What is known of these steps."""
        return cls(groups_of(steps), tuple(place for step in steps for place in step.places))

    def will_make(self, path: str | None) -> bool:
        """Whether one of them is to make what lies there."""
        return path is not None and any(Path(path).is_relative_to(place) for place in self.places)
