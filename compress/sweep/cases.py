"""From a recipe's `sweep` to the runs that it stands for."""

import copy
import dataclasses
import itertools
import json
import re
from typing import Any

from compress.base.config import build_from, to_dict
from compress.base.disk import sha256_json
from compress.base.errors import UsageError
from compress.run.recipe import Recipe
from compress.run.sections import SweepConfig

_LONGEST_FOLDER = 80


@dataclasses.dataclass(frozen=True)
class Case:
    """One of a sweep's runs."""

    name: str
    """As people read it: `alpha 0.2, temperature 2`."""
    folder: str
    changes: dict[str, Any]
    """Key of the recipe -> its value here."""
    recipe: Recipe


def cases_of(recipe: Recipe) -> list[Case]:
    """The runs of a recipe with a `sweep`, in the order in which they are written down; of a grid the last key runs
    fastest.

    Raises:
        UsageError: there is no `sweep`, a key or a value that the recipe cannot have, or two runs that are the same.
    """
    if recipe.sweep is None:
        raise UsageError(
            "This recipe has no `sweep`. Write one, e.g. `sweep: {grid: {distill.alpha: [0.2, 0.8]}}`, or give it with "
            "--set; for one run there is `compress run`."
        )
    base = to_dict(dataclasses.replace(recipe, sweep=None))
    found: list[Case] = []
    for changes in _changes(recipe.sweep):
        name = ", ".join(f"{_short(key, changes)} {_word(value)}" for key, value in changes.items())
        if any(case.changes == changes for case in found):
            raise UsageError(f"sweep: {name} is there twice.")
        case = build_from(Recipe, _changed(base, changes), f"sweep, {name}")
        found.append(Case(name, _folder(changes), changes, case))
    return found


def _changes(sweep: SweepConfig) -> list[dict[str, Any]]:
    if sweep.cases is not None:
        return list(sweep.cases)
    grid = sweep.grid or {}
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _changed(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The recipe as plain data, with some dotted keys set; a section that is null becomes one with the key alone."""
    data = copy.deepcopy(base)
    for key, value in changes.items():
        *sections, last = key.split(".")
        at = data
        for section in sections:
            if not isinstance(at.get(section), dict):
                at[section] = {}
            at = at[section]
        at[last] = copy.deepcopy(value)
    return data


def _short(key: str, among: dict[str, Any]) -> str:
    """The last part of a key, or all of it where another ends alike."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in among) == 1 else key


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _folder(changes: dict[str, Any]) -> str:
    """A folder's name, the same in every sweep that has this run."""
    words = [f"{_short(key, changes)}-{_word(value)}" for key, value in changes.items()]
    plain = "_".join(re.sub(r"[^A-Za-z0-9.+-]+", "-", word).strip("-.") for word in words)
    exact = all(re.fullmatch(r"[A-Za-z0-9.+-]+", _word(value)) for value in changes.values())
    if exact and len(plain) <= _LONGEST_FOLDER:
        return plain
    return f"{plain[: _LONGEST_FOLDER - 9]}-{sha256_json(changes)[:8]}"
