"""Recipes and options: YAML or flags in, frozen dataclasses out, validated once with dotted-path errors.

YAML is read as data only: safe tags, unique keys, no aliases, YAML 1.2 scalars (`1e-4` is a number, `no` and
`12:30:45` are strings). Each config is a dataclass beside its owner, made by the `config` decorator.
"""

import dataclasses
import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, dataclass_transform, get_args

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from compress.base.errors import UsageError

C = TypeVar("C")
_EMPTY = "it is empty: is a variable unset? Leave it out, or write null for none."


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


class _Loader(yaml.SafeLoader):
    """YAML 1.2 core scalars; the implicit resolvers of YAML 1.1 (yes/no, base 60, dates) are left out."""


class _Dumper(yaml.SafeDumper):
    """Quotes every string that YAML 1.1 or YAML 1.2 would read as something else."""


_Dumper.add_representer(tuple, lambda dumper, value: dumper.represent_list(value))
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("tag:yaml.org,2002:float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), _first)


def _to_data(node: yaml.Node, path: str, lines: dict[str, int], loader: _Loader) -> Any:
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                raise UsageError(f"line {key_node.start_mark.line + 1}: a key must be plain text.")
            if key in data:
                raise UsageError(
                    f"line {key_node.start_mark.line + 1}: the key {_join(path, key)!r} is written twice; keep one."
                )
            data[key] = _to_data(value_node, _join(path, key), lines, loader)
        return data
    if isinstance(node, yaml.SequenceNode):
        return [_to_data(item, _join(path, str(i)), lines, loader) for i, item in enumerate(node.value)]
    if node.tag == "tag:yaml.org,2002:int" and re.match(r"[-+]?0[0-9]", node.value):
        return int(node.value)  # YAML 1.2: 010 is ten, not eight
    return loader.construct_object(node)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


class Document:
    """Parsed YAML: plain `data`, and the line of every dotted path for error messages."""

    def __init__(self, data: dict[str, Any], lines: Mapping[str, int], source: str) -> None:
        self.data = data
        self.lines = dict(lines)
        self.overridden: dict[str, str] = {}
        """The assignment that each overridden dotted path has its value from."""
        self.source = source

    def where(self, path: str) -> str:
        """`recipe.yaml, line 7` for a dotted path, or `--set`, whichever the value is from, or the source alone."""
        while path and path not in self.lines and path not in self.overridden:
            path = path.rpartition(".")[0]
        if path in self.overridden:
            return self.overridden[path]
        within = [assignment for known, assignment in self.overridden.items() if known.startswith(f"{path}.")]
        place = f"{self.source}, line {self.lines[path]}" if path in self.lines else self.source
        return f"{place}, with {' '.join(within)}" if path and within else place

    def override(self, assignments: Sequence[str]) -> None:
        """Apply `a.b=value` assignments in order; each value is read as YAML.

        Raises:
            UsageError: an assignment has no `=`, or its path runs through something that is not a mapping.
        """
        for assignment in assignments:
            path, equals, text = assignment.partition("=")
            if not equals or not path:
                raise UsageError(f"--set {assignment}: write it as --set section.key=value.")
            if not text.strip():
                raise UsageError(f"--set {assignment}: {_EMPTY}")
            value = parse_yaml(f"v: {text}", f"--set {assignment}").data["v"]
            *parents, key = path.strip().split(".")
            target = self.data
            for part in parents:
                child = target.get(part)
                if child is None:
                    child = target[part] = {}
                if not isinstance(child, dict):
                    raise UsageError(f"--set {assignment}: {part!r} holds a value, not a section.")
                target = child
            target[key] = value
            self._note_override(path.strip(), f"--set {assignment}")

    def _note_override(self, path: str, assignment: str) -> None:
        """Forget the lines of what was there; a value below a path is as new as that path is."""
        for earlier in (self.lines, self.overridden):
            for known in [known for known in earlier if known == path or known.startswith(f"{path}.")]:
                del earlier[known]
        self.overridden[path] = assignment


def parse_yaml(text: str, source: str) -> Document:
    """Read one YAML mapping.

    Raises:
        UsageError: bad syntax, several documents, an alias, a duplicate key, or something other than a mapping.
    """
    try:
        loader = _Loader(text)
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise UsageError(f"{source}: YAML aliases (*{event.anchor}) are not supported; write the value out.")
        node = loader.get_single_node()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error
    if node is None:
        raise UsageError(f"{source} is empty; write at least `name:` and `teacher:`.")
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{source}: expected `key: value` lines at the top level.")
    lines: dict[str, int] = {}
    try:
        data = _to_data(node, "", lines, loader)
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{source}: {' '.join(str(error).split())}") from error
    except UsageError as error:
        raise UsageError(f"{source}, {error}") from None
    return Document(cast(dict[str, Any], data), lines, source)


def load_yaml(path: Path) -> Document:
    """Read a recipe file.

    Raises:
        UsageError: the file is missing, unreadable or not a YAML mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Cannot read the recipe {path}: {error}") from error
    return parse_yaml(text, path.name)


def build(cls: type[C], document: Document) -> C:
    """Validate a document into the config `cls`.

    Raises:
        UsageError: every fault with its dotted path, its line and, for an unknown key, the nearest known one.
    """
    adapter = TypeAdapter(cls)
    if empty := [f'{document.where(path)}: {path} = "": {_EMPTY}' for path in _empty_texts(document.data)]:
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


def dump_data(data: Mapping[str, Any]) -> str:
    """Plain data as `dump_yaml` writes a config's."""
    return yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _empty_texts(value: Any, path: str = "") -> Iterator[str]:
    """Dotted paths of all texts without a letter: that is what an unset variable leaves, and no option's value."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _empty_texts(part, _join(path, str(key)))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _empty_texts(part, _join(path, str(index)))
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
    """Field names of the config found by walking `parts` from `cls`, through what may be of several kinds."""
    for part in parts:
        hint = next((f.type for f in dataclasses.fields(cls) if key_of(f.name) == part), None)
        cls = next((kind for kind in _kinds(hint) if dataclasses.is_dataclass(kind)), None)
        if cls is None:
            return []
    return [key_of(f.name) for f in dataclasses.fields(cls)]


def _kinds(hint: Any) -> Iterator[Any]:
    yield hint
    for part in get_args(hint):
        yield from _kinds(part)
