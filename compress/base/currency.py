"""Whether a result is still what would be made now: its manifest against settings, inputs and files of today.

A result is current when every setting that decides it is the same. An option says beside itself, in its annotation,
what it means to results that exist already:

    num_proc: Annotated[int | None, FREE] = None                 touches no result
    calibration: Annotated[str | None, PLACE] = None             where an input lies that is known by its content
    order: Annotated[Literal["length", "none"], Before("none")] = "length"     newer than some results
    compile: Annotated[bool | Literal["auto"], Meaning("auto", False)] = "auto"     one of its values is newer

A setting that a manifest does not have counts as `Before` says or, without that mark, as the option's default. So
what earlier versions made stays current under versions that know more options.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, get_args, get_origin, get_type_hints

from compress.base.config import key_of, to_dict
from compress.base.disk import sha256_file

FREE: Final = "touches no result: may be another at any time"
PLACE: Final = "where an input lies: only whether there is one counts, and the input's own content"


@dataclasses.dataclass(frozen=True)
class Before:
    """Marks an option that came after results existed, with the value that means what these were made with."""

    value: Any


@dataclasses.dataclass(frozen=True)
class Meaning:
    """Marks an option one of whose values came after results existed, with what that value means to these."""

    value: Any
    before: Any


@dataclasses.dataclass(frozen=True)
class _Rule:
    free: bool = False
    place: bool = False
    newer: bool = False
    before: Any = None
    """What a result without this setting was made with."""
    options: type | None = None
    """The config that the setting's own settings belong to, or those of each of its parts where it is a list."""
    meaning: Meaning | None = None

    def as_meant(self, value: Any) -> Any:
        """A value as results that exist already have it."""
        return self.meaning.before if self.meaning is not None and value == self.meaning.value else value


@functools.cache
def _rules(kind: type | None) -> dict[str, _Rule]:
    """The rule of each option of a config."""
    if kind is None:
        return {}
    hints = get_type_hints(kind, include_extras=True)
    return {key_of(field.name): _rule(field, hints[field.name]) for field in dataclasses.fields(kind)}


def _rule(field: "dataclasses.Field[Any]", hint: Any) -> _Rule:
    marks = getattr(hint, "__metadata__", ())
    newer = [mark for mark in marks if isinstance(mark, Before)]
    before = None if field.default is dataclasses.MISSING else field.default
    if field.default_factory is not dataclasses.MISSING:
        before = field.default_factory()
    return _Rule(
        free=FREE in marks,
        place=PLACE in marks,
        newer=bool(newer),
        before=plain(newer[0].value if newer else before),
        options=_options_in(hint),
        meaning=next((mark for mark in marks if isinstance(mark, Meaning)), None),
    )


def _options_in(hint: Any) -> type | None:
    """The first config in an annotation; what is under keys of a user's own is left out."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint
    if get_origin(hint) in (dict, Mapping):
        return None
    return next((found for part in get_args(hint) if (found := _options_in(part)) is not None), None)


def plain(value: Any) -> Any:
    """A value as it reads back from JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = to_dict(value)
    return json.loads(json.dumps(value, default=str))


def as_before(kind: type | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as plain data without those newer options that say "as before": what results are remembered by."""
    rules = _rules(kind)
    found = {}
    for name, value in plain(dict(settings)).items():
        rule = rules.get(name, _Rule())
        value = rule.as_meant(value)
        if not (rule.newer and value == rule.before):
            found[name] = _each(value, functools.partial(as_before, rule.options)) if rule.options else value
    return found


def _each(value: Any, change: Callable[[dict[str, Any]], Any]) -> Any:
    """The settings of a config, or those of each in a list of them, changed; anything else as it is."""
    if isinstance(value, list):
        return [_each(part, change) for part in value]
    return change(value) if isinstance(value, dict) else value


def is_complete(kind: type, settings: Mapping[str, Any]) -> bool:
    """Whether all options are written out, but for newer ones: as a version of ours leaves them, and no user does."""
    rules = _rules(kind)
    if not {name for name, rule in rules.items() if not rule.newer} <= settings.keys() <= rules.keys():
        return False
    given = [(rule.options, settings[name]) for name, rule in rules.items() if rule.options and name in settings]
    parts = [(options, part) for options, value in given for part in (value if isinstance(value, list) else [value])]
    return all(is_complete(options, part) for options, part in parts if isinstance(part, dict))


def decisive(kind: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """`as_before` without the options that decide nothing by themselves: the free ones, and places."""
    rules = _rules(kind)
    kept = {name: value for name, value in settings.items() if not (rules[name].free or rules[name].place)}
    return as_before(kind, kept)


def setting_changes(kind: type | None, made: Mapping[str, Any], asked: Mapping[str, Any], at: str = "") -> list[str]:
    """What differs between the settings `made` with and those `asked` for, in words.

    `kind` is the config that they are options of; names that it does not have are compared as they are.
    """
    rules, found = _rules(kind), []
    made, asked = plain(dict(made)), plain(dict(asked))
    for name in dict.fromkeys([*made, *asked]):
        rule = rules.get(name, _Rule())
        old, new = (rule.as_meant(settings.get(name, rule.before)) for settings in (made, asked))
        if rule.free or old == new or (rule.place and (old is None) == (new is None)):
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found += setting_changes(rule.options, old, new, f"{at}{name}.")
        elif rule.options and isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            found += [
                change
                for number, (was, now) in enumerate(zip(old, new, strict=True))
                for change in setting_changes(rule.options, was, now, f"{at}{name}.{number}.")
            ]
        else:
            found.append(f"{at}{name} was {json.dumps(old)} and is {json.dumps(new)}")
    return found


def input_changes(made: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Which of the inputs in `now` are not those that a result was made from; one it does not name was none."""
    return [f"the {role} is another" for role, value in now.items() if plain(value) != made.get(role)]


def output_changes(folder: Path, outputs: Mapping[str, str]) -> list[str]:
    """Which files of a result, by SHA-256, are not as they were written."""
    altered = [
        name for name, sha in outputs.items() if not (folder / name).is_file() or sha256_file(folder / name) != sha
    ]
    return [f"its files were altered ({', '.join(altered[:3])}{' ...' if len(altered) > 3 else ''})"] if altered else []


def changes(
    folder: Path, made: Mapping[str, Any], *, kind: type | None, config: Mapping[str, Any], inputs: Mapping[str, Any]
) -> list[str]:
    """What differs between a result in `folder`, whose manifest is `made`, and one made from this config and these
    inputs now; empty when it is current."""
    asked = setting_changes(kind, made.get("config") or {}, config) + input_changes(made.get("inputs") or {}, inputs)
    return asked + output_changes(folder, made.get("outputs") or {})


class Missing(Exception):
    """What a comparison needs is not here now; the message says what."""


Inputs = Mapping[str, Callable[[], Any]]
"""How to find what each input of a result is now, by role: plain JSON data. One that is not here raises Missing."""


def inputs_now(inputs: Inputs) -> dict[str, Any]:
    """The inputs that are here."""
    found = {}
    for role, find in inputs.items():
        try:
            found[role] = find()
        except Missing:
            continue
    return found
