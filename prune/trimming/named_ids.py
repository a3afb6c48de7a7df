"""Token ids in a model's JSON files: who names which, and the same files with new ids."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

_NAMED = re.compile(r"(?:.*_)?token_(?:id|ids|index)")
"""Fields of config.json and generation_config.json whose values are ids that the model needs."""
_SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")
"""Fields with ids, or lists of ids, that are never written: of no matter where they are gone."""


def named_ids(content: Any) -> Iterator[tuple[str, int]]:
    """Each field of a JSON content that names a token, and its id; negative ones stand for no token."""
    if isinstance(content, list):
        for part in content:
            yield from named_ids(part)
    for name, value in content.items() if isinstance(content, dict) else ():
        if _NAMED.fullmatch(name):
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, int) and not isinstance(number, bool) and number >= 0:
                    yield name, number
        else:
            yield from named_ids(value)


def with_new_ids(content: Any, new: Mapping[int, int]) -> Any:
    """The same content with new ids, in which all that `named_ids` finds are `new`."""
    if isinstance(content, list):
        return [with_new_ids(part, new) for part in content]
    if not isinstance(content, dict):
        return content
    found = {}
    for name, value in content.items():
        if _NAMED.fullmatch(name):
            found[name] = [new.get(n, n) for n in value] if isinstance(value, list) else new.get(value, value)
        elif name in _SUPPRESSED and isinstance(value, list):
            found[name] = [each for part in value if (each := _all_new(part, new)) is not None]
        else:
            found[name] = with_new_ids(value, new)
    return found


def _all_new(ids: Any, new: Mapping[int, int]) -> Any:
    """An id, or a list of ids, as new ones; None where one of them is gone."""
    if isinstance(ids, list):
        return [new[number] for number in ids] if all(number in new for number in ids) else None
    return new.get(ids)
