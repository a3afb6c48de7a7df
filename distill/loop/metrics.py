"""RUN/train/metrics.jsonl and the trackers: one row a logged step, continued without gaps or repeats at a resume.

A step's row has the training loss and its terms, as they are defined and as they count (`NAME_scaled`); a row of
held-out measures has the terms of the held-out rows as they are defined, and what runs are compared by, whatever they
minimise: `heldout_kl`, KL(teacher || student) at temperature 1 (null without a teacher), and `heldout_hard`, the
cross-entropy of the next token; all in nats a token. A row of scores has `score/TASK` and `score_stderr/TASK`.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from compress.base.disk import read_rows, write_text
from compress.distill.objective.objective import Terms, loss_of

_ALWAYS = ("loss", "soft", "hard")
"""Columns that every row has; null where the objective has no such term."""


class Metrics:
    """Appends rows to metrics.jsonl (main process only) and sends them to accelerate's trackers.

    `done` is the number of finished steps of the checkpoint a run continues from: rows after it are dropped, since
    those steps are run again. So are that step's own rows of what is measured `again`, of those that the checkpoint
    does not know: columns that tell such rows by how they begin.
    """

    def __init__(self, path: Path, accelerator: Any, *, done: int, again: Sequence[str]) -> None:
        self._accelerator = accelerator
        self._file = None
        self.heldout: list[dict[str, Any]] = []
        """All rows of held-out measures so far, in the main process."""
        if accelerator.is_main_process:
            earlier = _rows_up_to(path, done, tuple(again))
            self.heldout = [row for row in earlier if "heldout_loss" in row]
            write_text(path, "".join(json.dumps(row) + "\n" for row in earlier))
            self._file = path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        """Write one row, which has `step`; numbers that are not finite become null."""
        row = {key: _finite_or_none(value) for key, value in row.items()}
        if self._file is not None:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
            self.heldout += [row] if "heldout_loss" in row else []
        numbers = {key: value for key, value in row.items() if value is not None and key != "step"}
        self._accelerator.log(numbers, step=row["step"])

    def sync(self) -> None:
        """Force what was written to the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        for tracker in self._accelerator.trackers:
            tracker.finish()


def step_columns(terms: Terms) -> dict[str, Any]:
    """The loss and the terms of a step, by column; their values are numbers."""
    raw = {name: term.raw for name, term in terms.items()}
    scaled = {f"{name}_scaled": term.value for name, term in terms.items()}
    return {**dict.fromkeys(_ALWAYS), "loss": loss_of(terms), **raw, **scaled}


def heldout_columns(found: Mapping[str, float]) -> dict[str, Any]:
    """What `Losses.measure` found, by column."""
    return {f"heldout_{name}": value for name, value in {**dict.fromkeys((*_ALWAYS, "kl")), **found}.items()}


def _rows_up_to(path: Path, done: int, again: tuple[str, ...]) -> list[dict[str, Any]]:
    """Whole rows of an earlier run up to step `done`, but for those measured again; none when it starts anew."""
    if done == 0 or not path.is_file():
        return []
    kept = []
    for row in read_rows(path, damaged="end"):
        step = row.get("step") if isinstance(row, dict) else None
        if not isinstance(step, int):
            break
        anew = step == done and any(column.startswith(again) for column in row)
        if step <= done and not anew:
            kept.append(row)
    return kept


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
