"""Options of a command that stand for fields of a config, where all that is said of them is said once.

A flag's type, default and help are its field's: the annotation, the value, and the docstring under it, which names the
placeholder if it begins with one (`SPEC: ...`). Configs are read when a flag is used or explained, and no sooner: they
import pydantic, for which `compress --help` has no time.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import itertools
import re
import textwrap
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import click

F = TypeVar("F", bound=Callable[..., Any])

_PLACEHOLDER = re.compile(r"([A-Z]+): ")


def flag(config: str, field: str, name: str | None = None, *, more: str = "", **settings: Any) -> Callable[[F], F]:
    """An option for one field of a config.

    Args:
        config: where the config is, `package.module:Class`.
        field: the field, under whose name the command is given the value; None when the option is not there.
        name: the option, as click takes it (`--check/--no-check`); by default the field's name.
        more: what the command line has to say beside the field's docstring.
        settings: of `click.option`; `is_flag` among them, for a switch that can only be put on.
    """
    name = name or f"--{_dashed(field)}"
    if not settings.get("is_flag") and "/" not in name:
        settings["type"] = _reader(config, field)
    return click.option(field, name, cls=_FieldOption, of=(config, field), more=more, default=None, **settings)


def flags(config: str, *fields: str) -> Callable[[F], F]:
    """A `flag` for each of several fields, in this order."""

    def decorate(function: F) -> F:
        for field in reversed(fields):
            function = flag(config, field)(function)
        return function

    return decorate


def _reader(config: str, field: str) -> Callable[[str], Any]:
    """Reads a flag's text as the field's type says; what else a value must fulfil, the config says when it is built."""

    def value(text: str) -> Any:
        return _explained(config, field).read(text)

    return value


class _FieldOption(click.Option):
    """An option that asks its field for placeholder, default and help when they are to be shown."""

    def __init__(self, *args: Any, of: tuple[str, str], more: str, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._of, self._more = of, more

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        said = _explained(*self._of)
        if not self.is_flag:
            self.metavar = self.metavar or said.placeholder
        self.help = " ".join(part for part in (said.help, said.default, self._more) if part)
        return super().get_help_record(ctx)


@dataclasses.dataclass(frozen=True)
class _Explained:
    """What a config says of a field, for the command line."""

    read: Callable[[str], Any]
    placeholder: str
    default: str
    help: str


@functools.cache
def _explained(config: str, field: str) -> _Explained:
    module, _, name = config.partition(":")
    owner = getattr(importlib.import_module(module), name)
    entry = owner.__dataclass_fields__[field]
    read, placeholder = _type_of(entry.type)
    text = " ".join(field_docs(owner)[field].split())
    if named := _PLACEHOLDER.match(text):
        text, placeholder = text[named.end() :], named[1]
        if isinstance(read, click.Choice):
            text = f"{text.removesuffix('.')}: {' | '.join(read.choices)}."
    shown = entry.default is not dataclasses.MISSING and entry.default not in (None, False)
    return _Explained(read, placeholder, f"[default: {_shown(field, entry.default)}]" if shown else "", text)


def _shown(field: str, default: Any) -> str:
    """A default as one would write it: True is the name of its switch."""
    return _dashed(field) if default is True else str(default)


def _dashed(field: str) -> str:
    return field.replace("_", "-")


def _type_of(annotation: Any) -> tuple[Callable[[str], Any], str]:
    """What reads the values of a field with this annotation, and their placeholder."""
    from compress.base.units import Count

    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(part for part in get_args(annotation) if part is not types.NoneType)
    if get_origin(annotation) is Annotated:
        annotation, *conditions = get_args(annotation)
        if get_args(Count)[1] in conditions:  # `40M`, which the config reads
            return click.STRING, "N"
    if get_origin(annotation) is Literal:
        choices = click.Choice(get_args(annotation))
        return choices, f"[{'|'.join(choices.choices)}]"
    if get_origin(annotation) in (list, tuple):
        return _names, "A,B"
    if annotation in (int, float):
        return (click.INT, "N") if annotation is int else (click.FLOAT, "NUMBER")
    return click.STRING, "TEXT"


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


@functools.cache
def field_docs(config: type) -> dict[str, str]:
    """The docstring under each field of a config, those that it inherits too. Python keeps them in the source only."""
    found: dict[str, str] = {}
    for owner in reversed(config.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(definition, ast.ClassDef)
        for field, below in itertools.pairwise(definition.body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(field.target, ast.Name):
                found[field.target.id] = inspect.cleandoc(ast.literal_eval(below.value))
    return found
