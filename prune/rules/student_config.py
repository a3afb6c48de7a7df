"""The student's config.json from the teacher's: the same file, with every field that speaks of layers rewritten.

The teacher's config object says what the fields mean once defaults are filled in (a `layer_types` list that the file
does not have); the file's own text is what is changed, so everything else in it stays as it was.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from compress.base.errors import InputError
from compress.prune.rules.fields import LAYER_RULES, NOT_PER_LAYER, REFUSED_TYPES, RULES, STACK_COUNTS
from compress.prune.rules.rules import REMOVED, NotExpressible, Renumbering

_COUNT = "num_hidden_layers"


def text_config(config: Any) -> Any:
    """The config of the language model: `config` itself, or a part of it.

    Raises:
        InputError: there are several, or the type is known to have layers that cannot be cut.
    """
    if config.model_type in REFUSED_TYPES:
        raise InputError(f"A {config.model_type} model cannot be cut by layers: {REFUSED_TYPES[config.model_type]}.")
    try:
        text = config.get_text_config()
    except ValueError as error:
        raise InputError(f"A {config.model_type} model cannot be cut by layers: {error}") from error
    if text.model_type in REFUSED_TYPES:
        raise InputError(f"A {text.model_type} model cannot be cut by layers: {REFUSED_TYPES[text.model_type]}.")
    return text


def num_layers(config: Any) -> int:
    """Number of decoder layers.

    Raises:
        InputError: the config has none.
    """
    text = text_config(config)
    name = STACK_COUNTS.get(text.model_type, _COUNT)
    count = getattr(text, name, None)
    if not isinstance(count, int) or count < 1:
        raise InputError(f"The teacher's config.json has {name} = {count!r}; it must be a whole number from 1 on.")
    return count


def student_config(config: Any, raw: Mapping[str, Any], kept: tuple[int, ...]) -> dict[str, Any]:
    """Content of the student's config.json.

    Args:
        config: the teacher's config object.
        raw: the content of its config.json.
        kept: kept layers, increasing.

    Raises:
        InputError: a field cannot be expressed for the kept layers, or is not understood; the message names it.
    """
    text = text_config(config)
    result = copy.deepcopy(dict(raw))
    section = text_section(config, text, result)
    cut = Renumbering(kept, num_layers(config))
    fields = {**section, **text.to_dict()}
    _check_choice(text.model_type, fields, cut)
    for name, value in _updates(text.model_type, fields, cut).items():
        if value is REMOVED:
            section.pop(name, None)
        else:
            section[name] = value
    count = STACK_COUNTS.get(text.model_type, text.attribute_map.get(_COUNT, _COUNT))
    section[count] = len(kept)
    if _COUNT in section and text.model_type not in STACK_COUNTS:
        section[_COUNT] = len(kept)
    return result


def _check_choice(model_type: str, fields: Mapping[str, Any], cut: Renumbering) -> None:
    if model_type in LAYER_RULES:
        try:
            LAYER_RULES[model_type](fields, cut)
        except NotExpressible as problem:
            raise InputError(f"This {model_type} model cannot be cut so: {problem}.") from None


def text_section(config: Any, text: Any, content: dict[str, Any]) -> dict[str, Any]:
    """The part of a config.json's `content` that is of the language model `text`: all of it where `config` is that, or
    where the file has its fields beside those of other parts (Qwen2-VL).

    Raises:
        InputError: it has none.
    """
    if text is config:
        return content
    for name in config.sub_configs:
        if getattr(config, name, None) is text:
            if name not in content and _COUNT in content:
                return content
            section: dict[str, Any] = content.setdefault(str(name), {})
            return section
    raise InputError(f"A {config.model_type} config.json keeps its language model where this tool does not look.")


def _updates(model_type: str, fields: Mapping[str, Any], cut: Renumbering) -> dict[str, Any]:
    updates: dict[str, Any] = {}
    for name, value in fields.items():
        if value is None:
            continue
        if name not in RULES:
            _refuse_if_per_layer(model_type, name, value, cut)
            continue
        try:
            updates |= RULES[name](name, fields, cut)
        except NotExpressible as problem:
            raise InputError(
                f"This {model_type} model cannot be cut by layers: config.json has {name} = {_short(value)}, and "
                f"{problem}."
            ) from None
    return updates


def _refuse_if_per_layer(model_type: str, name: str, value: Any, cut: Renumbering) -> None:
    for path, entries in _collections(name, value):
        one_a_layer = len(entries) == cut.num_layers and isinstance(entries, list | tuple)
        by_layer = isinstance(entries, Mapping) and bool(entries) and all(str(key).isdigit() for key in entries)
        if one_a_layer or by_layer or (len(entries) > 0 and "layer" in path):
            raise InputError(
                f"This {model_type} model cannot be cut by layers: config.json has {path} = {_short(entries)}, which "
                f"seems to say something about each of the {cut.num_layers} layers, and this tool does not know what "
                "it means. Remove the field if the model does not use it."
            )


def _collections(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every list and mapping of a value with its dotted path, but for those known not to be about layers."""
    if path.rpartition(".")[2] in NOT_PER_LAYER:
        return
    if isinstance(value, list | tuple):
        yield path, value
    elif isinstance(value, Mapping):
        yield path, value
        for key, item in value.items():
            yield from _collections(f"{path}.{key}", item)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
