"""Where a run stands: with the weights and the optimizer's moments, all there is to save of it."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from compress.base.errors import InputError, reason_of
from compress.data.store import order
from compress.distill.rollouts.state import Rollouts

Measure = Literal["heldout_kl", "heldout_hard", "heldout_loss"]
MEASURES: tuple[Measure, ...] = ("heldout_kl", "heldout_hard", "heldout_loss")
OF_SOURCES = ("kl", "hard", "kl_stderr", "hard_stderr")
"""What is kept of the measures of each source of a blend."""
STDERRS = ("heldout_kl_stderr", "heldout_hard_stderr")


@dataclasses.dataclass
class Progress:
    """Where a run stands.

    Its held-out measures are means over the held-out labels, in nats a token, of the student after this very step;
    None where it was not measured, or where one was not finite. Those that are called best are all of one step: of the
    least `best_by`.
    """

    step: int = 0
    """Finished steps."""
    position: int = 0
    """Rows of the data consumed."""
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    heldout_loss: float | None = None
    """What the run minimises, by its own weights, temperature and divergence: to be set beside the training loss."""
    best_heldout_loss: float | None = None
    seconds: float = 0.0
    """Wall time of training so far, over all resumed runs."""
    rows_sha256: str = order.START
    """Hash of the ids of all rows read so far; see `compress.data.store.order`."""
    recent_losses: list[float] = dataclasses.field(default_factory=list)
    """What a spike of the loss is measured against; see `StepGuard`."""
    heldout_kl: float | None = None
    """KL(teacher || student) at temperature 1; None without a teacher."""
    heldout_hard: float | None = None
    """Cross-entropy of the next token."""
    heldout_kl_stderr: float | None = None
    heldout_hard_stderr: float | None = None
    best_heldout_kl: float | None = None
    best_heldout_hard: float | None = None
    best_by: Measure = "heldout_loss"
    """What the best step has least of: `heldout_kl`, or `heldout_hard` without a teacher, whatever is minimised.
    A run begun before these were measured goes on by its `heldout_loss`."""
    heldout_sources: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    """Of each source of a blend, by its name: `kl`, `hard` and their standard errors, on its held-out rows."""
    levels: dict[str, float] = dataclasses.field(default_factory=dict)
    """The terms of the step before, where the next one's weights go by them (`balance: level`)."""

    rollouts: Rollouts | None = None
    """What the student wrote to learn from; None where it does not."""
    scored: int | None = None
    """The step after which its abilities were last scored."""
    reached: bool = False
    """Whether it ended before its last step, at what was asked for."""

    def advance(self, row_ids: NDArray[np.int64]) -> None:
        """Count one step, which read these rows."""
        self.step, self.position = self.step + 1, self.position + len(row_ids)
        self.rows_sha256 = order.extend(self.rows_sha256, row_ids)
        for name in (*MEASURES, *STDERRS):
            setattr(self, name, None)
        self.heldout_sources = {}

    def note_heldout(self, found: Mapping[str, float], sources: Mapping[str, Mapping[str, float]]) -> None:
        """Take what `Losses.measure` found of the student as it is, and on the rows of each source of a blend; what is
        not finite counts as none."""
        now = {name: found.get(name.removeprefix("heldout_")) for name in MEASURES}
        now = {name: value if value is not None and math.isfinite(value) else None for name, value in now.items()}
        best, value = getattr(self, f"best_{self.best_by}"), now[self.best_by]
        better = value is not None and (best is None or value < best)
        for name in MEASURES:
            setattr(self, name, now[name])
            if better:
                setattr(self, f"best_{name}", now[name])
        for error in STDERRS:
            setattr(self, error, found.get(error.removeprefix("heldout_")))
        self.heldout_sources = {
            source: {name: values[name] for name in OF_SOURCES if math.isfinite(values.get(name, math.nan))}
            for source, values in sources.items()
        }

    def heldout(self) -> dict[str, Any]:
        """All held-out measures, last and best, for a record."""
        return {
            **{name: getattr(self, name) for name in (*MEASURES, *STDERRS)},
            **{f"best_{name}": getattr(self, f"best_{name}") for name in MEASURES},
            "best_by": self.best_by,
            "heldout_sources": self.heldout_sources,
        }


_LATER = (
    *STDERRS,
    "heldout_kl",
    "heldout_hard",
    "best_heldout_kl",
    "best_heldout_hard",
    "best_by",
    "levels",
    "heldout_sources",
    "rollouts",
    "scored",
    "reached",
)
"""Fields that a state of an earlier version lacks; their defaults mean that all goes on as it began."""


def read_progress(state: Mapping[str, Any], path: Path) -> Progress:
    """Where the run of a checkpoint stood.

    Raises:
        InputError: the state is not as this version writes it.
    """
    names = [field.name for field in dataclasses.fields(Progress)]
    try:
        found = {name: state[name] for name in names if name in state or name not in _LATER}
        return TypeAdapter(Progress).validate_json(json.dumps(found), strict=True)
    except (KeyError, ValidationError) as error:
        raise other_version(path, reason_of(error)) from error


def other_version(path: Path, fault: str) -> InputError:
    """The error for a checkpoint that this version did not write."""
    return InputError(
        f"{path / 'state.json'} is not as this version writes it ({fault}). Go on with the version that wrote it, or "
        f"remove {path.parent} to start anew."
    )
