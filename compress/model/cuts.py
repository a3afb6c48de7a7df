"""Which layers of other models a cut is made of, or a model grown from one, by the record beside its weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from compress.base.disk import read_json

CUT_RECORDS = ("prune.json", "grow.json")
"""Of a cut, and of a model grown from one."""


class Cut(NamedTuple):
    """Layers of a model that a smaller one is made of."""

    kept: tuple[int, ...]
    """0-based, in order."""
    num_layers: int
    """Layers of the model that they are of."""

    def of(self, earlier: "Cut") -> "Cut":
        """The same layers as layers of the model that the one they are of was cut from."""
        return Cut(tuple(earlier.kept[layer] for layer in self.kept), earlier.num_layers)

    def to_dict(self) -> dict[str, Any]:
        """What prune.json says of the first model's."""
        return {"kept_layers": self.kept, "num_layers": self.num_layers}


def cuts_of(folder: Path) -> tuple[Cut, ...]:
    """A model's `cuts`, as the prune.json or grow.json beside its weights has them."""
    records = (read_json(folder / name) for name in CUT_RECORDS if (folder / name).is_file())
    found = next((each for each in records if isinstance(each, dict) and each.get("kept_layers") is not None), None)
    if found is None:
        return ()
    first = found.get("original")
    earlier = () if first is None else (Cut(tuple(first["kept_layers"]), first["num_layers"]),)
    kept = tuple(found["kept_layers"])
    return (Cut(kept, len(kept) + len(found.get("dropped_layers") or ())), *earlier)


def kept_layers(cuts: Sequence[Cut], teacher: Any | None) -> tuple[int, ...] | None:
    """The layers of a teacher that a student's own are, by the student's `cuts`; None where it is no known cut.

    `teacher` is its config, whose depth says which of the models it is that the student was cut from. Of one as deep
    as the student, they are its own; without a teacher, or of one of another depth, those of the last cut.
    """
    if not cuts:
        return None
    depth = None if teacher is None else teacher.get_text_config().num_hidden_layers
    itself = Cut(tuple(range(len(cuts[0].kept))), len(cuts[0].kept))
    return next((cut.kept for cut in (*cuts, itself) if cut.num_layers == depth), cuts[0].kept)
