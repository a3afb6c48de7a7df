"""A recipe as `compress init` writes it: short, each line with its reason; and the table of what was chosen."""

import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from compress.base.config import build
from compress.base.documents import parse_yaml
from compress.base.units import format_count, parse_count
from compress.data import DataConfig
from compress.distill import DistillConfig
from compress.evaluate import EvalConfig
from compress.prune import PruneConfig
from compress.run.best import Choice
from compress.run.recipe import Recipe
from compress.run.sections import TeacherConfig

_SECTIONS: dict[str, type] = {
    "teacher": TeacherConfig,
    "prune": PruneConfig,
    "data": DataConfig,
    "distill": DistillConfig,
    "eval": EvalConfig,
}
_PLAIN = re.compile(r"[A-Za-z./~$][\w./:$~+@-]*\w|[0-9]+%")
_COMMENT_COLUMN = 48


class Expected(NamedTuple):
    """Something to expect of the recipe, and what that rests on."""

    name: str
    value: str
    why: str


@dataclasses.dataclass(frozen=True)
class Draft:
    """A recipe that was written, and what it was made of."""

    path: Path
    choices: tuple[Choice, ...]
    """Those that are defaults are not in the recipe."""
    expected: tuple[Expected, ...]
    figures: dict[str, float]
    """The numbers behind `expected`."""

    def to_dict(self) -> dict[str, Any]:
        """The draft as plain JSON data."""
        chosen = {key: {"value": value, "why": why} for key, value, why in self.choices}
        return {"recipe": str(self.path), "choices": chosen, "expected": self.figures}

    def describe(self) -> str:
        """What was chosen, what to expect, and why, as a table."""
        chosen = [(key, as_yaml(value), why) for key, value, why in self.choices]
        rows = [*chosen, *self.expected]
        first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
        lines = [f"{name:<{first}}  {value:<{second}}  {why}" for name, value, why in rows]
        return "\n".join([*lines[: len(chosen)], "", *lines[len(chosen) :]])


def in_order(choices: Iterable[Choice]) -> list[Choice]:
    """Choices as a recipe has them, section after section."""
    return sorted(choices, key=lambda choice: ["name", *_SECTIONS].index(choice.key.partition(".")[0]))


def recipe_of(choices: Iterable[Choice]) -> Recipe:
    """The recipe that these choices make."""
    return build(Recipe, parse_yaml(recipe_text(choices, ""), "the recipe"))


def recipe_text(choices: Iterable[Choice], head: str) -> str:
    """The recipe as a file: a comment of one line, and what is no default, each with its reason."""
    lines, open_section = [f"# {' '.join(head.split())}"], ""
    for key, value, why in choices:
        section, _, name = key.rpartition(".")
        if value == _default(section, name):
            continue
        if section != open_section:
            lines += ["", f"{section}:"]
            open_section = section
        line = f"{'  ' if section else ''}{name}: {as_yaml(value)}"
        lines.append(f"{line:<{_COMMENT_COLUMN}}  # {why}")
    return "\n".join(lines) + "\n"


def _default(section: str, name: str) -> Any:
    fields = dataclasses.fields(_SECTIONS.get(section, Recipe))
    return next(field.default for field in fields if field.name == name)


def as_yaml(value: Any) -> str:
    """A value as one would write it: `[quick]`, `1.5M`, `true`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(as_yaml, value))}]"
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and parse_yaml(f"v: {value}", "").data["v"] == value
        return value if plain else json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        return str(value)
    short = format_count(value)
    return short if value >= 10**4 and parse_count(short) == value else str(value)
