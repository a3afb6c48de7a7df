"""Recipes and options: YAML or flags in, frozen dataclasses out, validated once with dotted-path errors.

Each config is a dataclass beside its owner, made by the `config` decorator.
"""

import dataclasses
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, dataclass_transform, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from compress.base.documents import EMPTY, Document, dump_data, join
from compress.base.errors import UsageError

C = TypeVar("C")


def key_of(field: str) -> str:
    """What a field of a config is called outside Python."""
    return field.removesuffix("_")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def config(cls: type[C]) -> type[C]:
    """Make a class a config: frozen, keyword-only; unknown keys and loose types are refused.

    Without slots, so that one config may be made of several others. A field whose name is a word of Python's ends in
    an underscore here, and has none in YAML (`from_`, `from:`).
    """
    cls.__pydantic_config__ = ConfigDict(extra="forbid", strict=True, alias_generator=key_of)  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def build(cls: type[C], document: Document) -> C:
    """Validate a document into the config `cls`.

    Raises:
        UsageError: every fault with its dotted path, its line and, for an unknown key, the nearest known one.
    """
    adapter = TypeAdapter(cls)
    if empty := [f'{document.where(path)}: {path} = "": {EMPTY}' for path in _empty_texts(document.data)]:
        raise UsageError("\n".join(empty))
    try:
        return adapter.validate_json(json.dumps(document.data))
    except ValidationError as error:
        faults = [_explain(path, fault, cls, document) for path, fault in _faults(error, document)]
        raise UsageError("\n".join(dict.fromkeys(faults))) from None


def build_from(cls: type[C], values: Mapping[str, Any], source: str = "the command line") -> C:
    """Validate plain values (from flags) into the config `cls`; same errors as `build`."""
    return build(cls, Document(dict(values), {}, source))


def given_flags(values: dict[str, Any], overrides: Sequence[str]) -> Document:
    """What a command line gives: flags by section, without those not given, and then its `--set` overrides.

    Raises:
        UsageError: an override cannot be applied.
    """
    given = {name: {k: v for k, v in section.items() if v is not None} for name, section in values.items()}
    document = Document(given, {}, "the command line")
    document.override(overrides)
    return document


def from_flags(cls: type[C], values: dict[str, Any], overrides: Sequence[str]) -> C:
    """Validate what `given_flags` finds.

    Raises:
        UsageError: every fault with its dotted path, as `build`.
    """
    return build(cls, given_flags(values, overrides))


def to_dict(value: Any) -> dict[str, Any]:
    """A config as plain JSON data, with every default written out."""
    return dataclasses.asdict(value, dict_factory=lambda items: {key_of(name): part for name, part in items})


def dump_yaml(value: Any) -> str:
    """A config as YAML that `parse_yaml` and `build` read back to an equal one."""
    return dump_data(to_dict(value))


def _empty_texts(value: Any, path: str = "") -> Iterator[str]:
    """Dotted paths of all texts without a letter: that is what an unset variable leaves, and no option's value."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _empty_texts(part, join(path, str(key)))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _empty_texts(part, join(path, str(index)))
    elif isinstance(value, str) and not value.strip():
        yield path


def _faults(error: ValidationError, document: Document) -> list[tuple[str, ErrorDetails]]:
    """Each fault with its dotted path; of the kinds that a value may have, only those that it seems meant to be."""
    found = [(".".join(_place(fault, document.data)), fault) for fault in error.errors()]
    paths = [path for path, _ in found]
    fitting = {path for path, fault in found if fault["type"] == "value_error"}  # of that kind, and refused by it
    return [
        (path, fault)
        for path, fault in found
        if not any(other.startswith(f"{path}.") for other in paths)
        and not (fault["type"] in ("dataclass_type", "tuple_type") and paths.count(path) > 1)
        and not (path in fitting and fault["type"] != "value_error")
    ]


def _place(fault: ErrorDetails, data: Any) -> Iterator[str]:
    """Where a fault is, without the names that pydantic gives to the kinds of a value that may be of several."""
    *parts, last = fault["loc"] or ("",)
    for part in parts:
        inside = isinstance(data, dict) and part in data
        if inside or (isinstance(data, list) and isinstance(part, int)):
            data = data[part]
            yield str(part)
    absent = "missing" in fault["type"] or fault["type"] in ("unexpected_keyword_argument", "extra_forbidden")
    if absent or isinstance(last, int) or (isinstance(data, dict) and last in data):
        yield str(last)


def _explain(path: str, fault: ErrorDetails, cls: type, document: Document) -> str:
    parts = path.split(".")
    where = document.where(path)
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _fields_at(cls, parts[:-1])
        near = difflib.get_close_matches(parts[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*parts[:-1], near[0]])!r}?" if near else f"known: {', '.join(known)}."
        return f"{where}: unknown key {path!r}; {hint}"
    if fault["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{where}: {path!r} is required."
    message = fault["msg"].removeprefix("Value error, ")
    given = json.dumps(fault.get("input"), default=str)
    return f"{where}: {path} = {given if len(given) < 80 else given[:77] + '...'}: {message}."


def _fields_at(cls: Any, parts: Sequence[str]) -> list[str]:
    """Field names of the config found by walking `parts` from `cls`, through lists and what may be of several kinds."""
    for part in parts:
        if part.isdigit():
            continue
        hint = next((f.type for f in dataclasses.fields(cls) if key_of(f.name) == part), None)
        cls = next((kind for kind in _kinds(hint) if dataclasses.is_dataclass(kind)), None)
        if cls is None:
            return []
    return [key_of(f.name) for f in dataclasses.fields(cls)]


def _kinds(hint: Any) -> Iterator[Any]:
    yield hint
    for part in get_args(hint):
        yield from _kinds(part)
