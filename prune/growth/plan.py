"""What is known of a student, its teacher and the sizes between before a weight is read."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.base.disk import read_json
from compress.base.errors import Faults, InputError, UsageError
from compress.base.units import format_count
from compress.model.cuts import CUT_RECORDS, cuts_of, kept_layers
from compress.model.facts import look_at_config
from compress.model.files import model_fingerprint
from compress.prune.choose.spec import format_layers
from compress.prune.growth.config import GrowConfig
from compress.prune.plan import Derivation, cast_derivation, derive

_WEIGHTS = (".safetensors", ".gguf")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Growth:
    """A student, the teacher it was cut from, and the models to make of them."""

    student: Path
    """Folder of the student."""
    teacher: Path
    """Folder of its teacher."""
    name: str
    """What the user calls the teacher."""
    kept: tuple[int, ...]
    """The teacher's layers that the student has, increasing."""
    num_layers: int
    """Of the teacher."""
    sizes: tuple[int, ...]
    """Layers of each model to make, increasing."""
    dtype: str
    """What the student's weights are stored in: float32, bfloat16, ..."""
    teacher_dtype: str
    """What the teacher's are."""

    @property
    def rounds(self) -> str | None:
        """The dtype that the teacher's blocks are rounded to; None where they are kept or widened."""
        return None if self.dtype in (self.teacher_dtype, "float32") else self.dtype

    @property
    def missing(self) -> tuple[int, ...]:
        """The teacher's layers that the student has not, increasing."""
        return tuple(sorted(set(range(self.num_layers)) - set(self.kept)))

    @property
    def count(self) -> int:
        """Blocks that the largest model is given back."""
        return self.sizes[-1] - len(self.kept)

    def layers(self, size: int, order: Sequence[int]) -> tuple[int, ...]:
        """The teacher's layers that the model of `size` layers has, blocks being put back in that order."""
        return tuple(sorted({*self.kept, *order[: size - len(self.kept)]}))

    def derive(self, layers: Sequence[int]) -> Derivation:
        """The config and the figures of a model with these of the teacher's layers.

        Raises:
            InputError: the teacher's config.json cannot be written for them.
        """
        return cast_derivation(derive(self.name, self.teacher, format_layers(layers)), self.dtype)

    def stand_in(self) -> list[int]:
        """An order in which to put blocks back where it is not measured yet."""
        return list(reversed(self.missing))

    def parameters(self) -> dict[int, int]:
        """Parameters of each model by its layers, as far as that is known before blocks are chosen: where layers are
        of several types, of others than will be put back."""
        return {size: self.derive(self.layers(size, self.stand_in())).plan.params_after for size in self.sizes}

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON data."""
        return {
            "student": str(self.student),
            "teacher": self.name,
            "student_layers": self.kept,
            "missing_layers": self.missing,
            "parameters": {str(size): count for size, count in self.parameters().items()},
        }

    def describe(self) -> str:
        """The models for people, a line each."""
        lines = [f"{self.student}: {len(self.kept)} of the {self.num_layers} layers of {self.name}"]
        for size, count in self.parameters().items():
            lines.append(f"{size:>4} layers   {format_count(count)} parameters")
        return "\n".join(lines)


def plan_growth(student: str | Path, teacher: str, config: GrowConfig) -> Growth:
    """Find what the models to make are made of; `student` and `teacher` are folders or hub ids.

    Raises:
        UsageError: a size does not lie between the student's and the teacher's.
        InputError: a model cannot be used, or nothing says which layers the student has.
    """
    faults = Faults()
    small, large = look_at_config(str(student), faults), look_at_config(teacher, faults)
    faults.refuse()
    assert small is not None
    assert large is not None
    kept = kept_layers(cuts_of(cut_folder(small.side)), large.config)
    assert kept is not None
    whole = derive(teacher, large.side, ":").plan
    return Growth(
        student=small.side,
        teacher=large.side,
        name=teacher,
        kept=kept,
        num_layers=whole.num_layers,
        sizes=sizes_between(config, len(kept), whole.num_layers),
        dtype=str(small.config.dtype or whole.dtype).removeprefix("torch."),
        teacher_dtype=whole.dtype,
    )


def sizes_between(config: GrowConfig, fewest: int, most: int) -> tuple[int, ...]:
    """The numbers of layers that are asked for, of a student with `fewest` and a teacher with `most`, increasing.

    Raises:
        UsageError: one is not between, or there is none.
    """
    wrong = [size for size in config.layers if not fewest < size <= most]
    if wrong:
        raise UsageError(
            f"grow.layers = {', '.join(map(str, wrong))}: the student has {fewest} layers and its teacher {most}; "
            f"write numbers from {fewest + 1} to {most}."
        )
    if not (found := tuple(sorted(config.layers)) or tuple(range(fewest + 1, most))):
        raise UsageError(f"The student has {fewest} layers and its teacher {most}: there is no size between.")
    return found


def cut_folder(student: Path) -> Path:
    """Where it is recorded which layers a student has: beside its weights, or beside those that its healing began with.

    Raises:
        InputError: nowhere.
    """
    places = [student]
    if (student / "distill.json").is_file():
        record = read_json(student / "distill.json")
        named = record.get("student") if isinstance(record, dict) else None
        places += [Path(named)] if isinstance(named, str) else []
        places.append(student.parent / "student-init")
    for place in places:
        if cuts_of(place):
            return place
    raise InputError(
        f"Nothing says which layers of its teacher {student} has: there is no prune.json in "
        f"{' or '.join(map(str, places))}. Copy the prune.json of the cut that it was healed from to {student}."
    )


def require_teacher(growth: Growth) -> dict[str, str]:
    """The fingerprint of the teacher, which must be the one that the student was cut from.

    Raises:
        InputError: its weights or its config are others.
    """
    found = model_fingerprint(growth.teacher)
    place = cut_folder(growth.student)
    while len(cuts := cuts_of(place)) > 1 and cuts[0].num_layers != growth.num_layers:
        place = cut_folder(Path(_record_of(place)["teacher"]))  # in a chain, healed from a cut itself
    recorded = _record_of(place)
    made_from: dict[str, Any] = ((recorded.get("manifest") or {}).get("inputs") or {}).get("teacher") or {}
    of_model = [name for name in {*found, *made_from} if name == "config.json" or name.endswith(_WEIGHTS)]
    if differing := sorted(name for name in of_model if found.get(name) != made_from.get(name)):
        raise InputError(
            f"{growth.name} is not the model that {growth.student} was cut from: {', '.join(differing[:3])} differ. "
            "Name that one."
        )
    return found


def _record_of(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = next(read_json(place / name) for name in CUT_RECORDS if (place / name).is_file())
    return found
