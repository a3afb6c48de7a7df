"""YAML as plain data: safe tags, unique keys, no aliases, YAML 1.2 scalars (`1e-4` is a number, `no` and `12:30:45` are
strings); each value with its line, for what is said of it.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from compress.base.errors import UsageError

EMPTY = "it is empty: is a variable unset? Leave it out, or write null for none."
"""Why a text without a letter is no value."""


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
                    f"line {key_node.start_mark.line + 1}: the key {join(path, key)!r} is written twice; keep one."
                )
            data[key] = _to_data(value_node, join(path, key), lines, loader)
        return data
    if isinstance(node, yaml.SequenceNode):
        return [_to_data(item, join(path, str(i)), lines, loader) for i, item in enumerate(node.value)]
    if node.tag == "tag:yaml.org,2002:int" and re.match(r"[-+]?0[0-9]", node.value):
        return int(node.value)  # YAML 1.2: 010 is ten, not eight
    return loader.construct_object(node)


def join(path: str, key: str) -> str:
    """The dotted path of what is at `key` in what is at `path`."""
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
                raise UsageError(f"--set {assignment}: {EMPTY}")
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


def dump_data(data: Mapping[str, Any]) -> str:
    """Plain data as YAML that `parse_yaml` reads back to the same."""
    return yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
