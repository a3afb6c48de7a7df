"""What several runs would make alike is made once: the others get links to its files.

A finished result is never written again, so a file may have several names; removing a run leaves the others whole.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.base.currency import Missing
from compress.base.disk import staged_folder
from compress.run.steps import Step

_BY_SETTINGS = {"source", "chat template", "benchmarks"}
"""Inputs that the settings name, and that are looked up by way of the step's own result."""


def take_over(step: Step, earlier: Sequence[Step]) -> bool:
    """Link what one of the `earlier` steps has made, if it is what this one would make; whether there was one."""
    if any(place.exists() for place in step.places):
        return False
    for twin in earlier:
        if _is_twin(step, twin):
            for output, source in zip(step.outputs, twin.outputs, strict=True):
                _link(source.path, output.path)
            return True
    return False


def _is_twin(step: Step, twin: Step) -> bool:
    if (twin.name, twin.settings, len(twin.outputs)) != (step.name, step.settings, len(step.outputs)):
        return False
    roles = step.inputs.keys() - _BY_SETTINGS
    return twin.state()[0] == "done" and all(_now(step, role) == _now(twin, role) is not None for role in roles)


def _now(step: Step, role: str) -> Any:
    """An input, as plain data with its presence; None where it is not here."""
    try:
        return (step.inputs[role](),)
    except Missing:
        return None


def _link(source: Path, out: Path) -> None:
    """A folder appears whole or not at all; a result's record is a file, and the last of its files."""
    if source.is_dir():
        with staged_folder(out) as partial:
            shutil.copytree(source, partial, dirs_exist_ok=True, copy_function=_one_file)
    elif source.is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        _one_file(source, out)


def _one_file(source: str | Path, out: str | Path) -> None:
    try:
        os.link(source, out)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, out)
