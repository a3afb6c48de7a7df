"""The tensors of a student with fewer experts: routers' rows, and experts stored together or one by one."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from compress.weights.headers import StoredTensor, layer_keys
from compress.weights.rows import with_rows
from compress.weights.shards import StudentTensor

_ONE = re.compile(r"((?:.*\.)?experts)\.(\d+)\.(.+)")
_ALL = re.compile(r"(?:.*\.)?experts\.\D+|(?:.*\.)?gate\.weight")
"""What follows a layer's number in the names of one expert's tensors; and of those with a row for each expert."""


def with_experts(
    tensors: Sequence[StudentTensor], prefixes: Sequence[str], kept: Mapping[int, Sequence[int]], before: int
) -> list[StudentTensor]:
    """The tensors of a student, of whose layers `kept` experts of `before` stay, renumbered."""
    keys = layer_keys(prefixes)
    found: list[StudentTensor] = []
    for tensor in tensors:
        match = keys.fullmatch(tensor.name)
        if match is None or int(match[2]) not in kept:
            found.append(tensor)
            continue
        experts, tail = kept[int(match[2])], match[3]
        if one := _ONE.fullmatch(tail):
            if int(one[2]) in experts:
                number = experts.index(int(one[2]))
                name = f"{match[1]}.{match[2]}.{one[1]}.{number}.{one[3]}"
                found.append(dataclasses.replace(tensor, name=name))
        elif _ALL.fullmatch(tail) and _rows(tensor.source) == before:
            found.append(with_rows(tensor, experts))
        else:
            found.append(tensor)
    return found


def _rows(stored: StoredTensor) -> int:
    return stored.shape[0] if stored.shape else 0
