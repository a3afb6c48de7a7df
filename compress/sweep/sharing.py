"""What several runs would make alike is made once: the others get links to its files.

A finished result is never written again, so a file may have several names; removing a run leaves the others whole.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from compress.base.currency import inputs_now
from compress.base.disk import read_json, staged_folder
from compress.run.steps import Step

_BY_SETTINGS = {"source", "chat template", "benchmarks"}
"""Inputs that the settings name, and that are looked up by way of the step's own result."""


def take_over(step: Step, earlier: Sequence[Step]) -> bool:
    """Link what one of the `earlier` steps has made, if it is what this one would make; whether there was one.

    Inputs are found once, and compared with what records say; a twin alone is looked at whole.
    """
    twins = [twin for twin in earlier if _is_asked_alike(step, twin) and twin.is_finished()]
    if not twins or any(place.exists() for place in step.places):
        return False
    roles = step.inputs.keys() - _BY_SETTINGS
    now = inputs_now({role: step.inputs[role] for role in roles})
    for twin in twins:
        made = read_json(twin.record)["manifest"]["inputs"]
        if now == {role: made[role] for role in roles & made.keys()} and twin.state()[0] == "done":
            for output, source in zip(step.outputs, twin.outputs, strict=True):
                _link(source.path, output.path)
            return True
    return False


def _is_asked_alike(step: Step, twin: Step) -> bool:
    return (twin.name, twin.settings, len(twin.outputs)) == (step.name, step.settings, len(step.outputs))


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
