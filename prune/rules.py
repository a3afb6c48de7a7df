"""What becomes of a config field that says something about single layers: one function a kind of field.

A rule reads the teacher's fields and returns the student's values for the fields it settles (`REMOVED` takes one
out). It raises `NotExpressible` when the student cannot say what the teacher says. `fields.py` is the table of which
field follows which rule.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final


class NotExpressible(Exception):
    """A field's meaning cannot be written for the kept layers; the text says why."""


@dataclasses.dataclass(frozen=True)
class Cut:
    """Kept layers, increasing, of `num_layers` 0-based layers."""

    kept: tuple[int, ...]
    num_layers: int

    def __post_init__(self) -> None:
        assert self.kept
        assert list(self.kept) == sorted({*self.kept} & {*range(self.num_layers)})


REMOVED: Final = object()
Fields = Mapping[str, Any]
Rule = Callable[[str, Fields, Cut], dict[str, Any]]


def each_layer(name: str, fields: Fields, cut: Cut) -> dict[str, Any]:
    """One entry a layer: keep the kept layers' entries. A scalar holds for all layers and stays."""
    value = fields[name]
    if not isinstance(value, list | tuple):
        return {}
    if not value:
        return {}
    if len(value) != cut.num_layers:
        raise NotExpressible(f"it has {len(value)} entries for {cut.num_layers} layers")
    return {name: [value[layer] for layer in cut.kept]}


def layer_indices(name: str, fields: Fields, cut: Cut) -> dict[str, Any]:
    """A list of layer indices: keep those of kept layers, renumbered."""
    value = fields[name]
    if not isinstance(value, list | tuple):
        raise NotExpressible(f"it is {value!r}, not a list of layer indices")
    if any(not isinstance(i, int) or not 0 <= i < cut.num_layers for i in value):
        raise NotExpressible(f"it names layers outside 0 to {cut.num_layers - 1}")
    return {name: [new for new, old in enumerate(cut.kept) if old in value]}


def layer_keys(name: str, fields: Fields, cut: Cut) -> dict[str, Any]:
    """A mapping from layer index (as a number or as text) to settings: keep the kept layers' entries, renumbered."""
    value = fields[name]
    if not isinstance(value, Mapping) or not all(str(key).isdigit() for key in value):
        raise NotExpressible("it is not a mapping from layer indices")
    by_layer = {int(key): setting for key, setting in value.items()}
    return {name: {str(new): by_layer[old] for new, old in enumerate(cut.kept) if old in by_layer}}


def prefix_count(name: str, fields: Fields, cut: Cut) -> dict[str, Any]:
    """How many layers from the first on are special: count the kept ones among them."""
    return {name: sum(layer < fields[name] for layer in cut.kept)}


def last_index(name: str, fields: Fields, cut: Cut) -> dict[str, Any]:
    """Index of the last special layer, -1 for the stack's last."""
    if fields[name] == -1:
        return {}
    last = sum(layer <= fields[name] for layer in cut.kept) - 1
    if last < 0:
        raise NotExpressible("none of the layers it spans is kept")
    return {name: last}


def repeated_pattern(name: str, fields: Fields, cut: Cut) -> dict[str, Any]:
    """A pattern repeated along the stack: write it out, one entry a kept layer."""
    pattern = fields[name]
    return {name: [pattern[layer % len(pattern)] for layer in cut.kept]}


def sparse_step(name: str, fields: Fields, cut: Cut) -> dict[str, Any]:
    """Every `step`-th layer is a mixture of experts unless `mlp_only_layers` names it: name every dense layer.

    Layer i is sparse when (i + 1) % step == 0 and i is not in `mlp_only_layers` (qwen2_moe, qwen3_moe).
    """
    step, dense = fields[name], fields.get("mlp_only_layers") or []
    if step == 1:
        return {}
    if not step:
        raise NotExpressible(f"its step is {step!r}")
    written = [new for new, old in enumerate(cut.kept) if (old + 1) % step != 0 or old in dense]
    return {name: 1, "mlp_only_layers": written}


def gpt_neo_types(name: str, fields: Fields, cut: Cut) -> dict[str, Any]:
    """`[[pattern, repeats], ...]` (gpt_neo): the kept layers' types, written out and repeated once."""
    written = [kind for pattern, repeats in fields[name] for _ in range(repeats) for kind in pattern]
    if len(written) != cut.num_layers:
        raise NotExpressible(f"it describes {len(written)} layers of {cut.num_layers}")
    return {name: [[[written[layer] for layer in cut.kept], 1]]}


def written_out_by(other: str) -> Rule:
    """A period that only fills the list `other` when that is absent: the student has the list and not the period."""

    def rule(name: str, fields: Fields, cut: Cut) -> dict[str, Any]:
        if not isinstance(fields.get(other), list):
            raise NotExpressible(f"no list {other} says which layers it makes")
        return {name: REMOVED}

    return rule


def only(*values: Any, why: str) -> Rule:
    """A field that cannot be translated, harmless at these values."""

    def rule(name: str, fields: Fields, cut: Cut) -> dict[str, Any]:
        if fields[name] not in values:
            raise NotExpressible(why)
        return {}

    return rule


def becomes(value: Any) -> Rule:
    """A count of parts that the student does not have."""

    def rule(name: str, fields: Fields, cut: Cut) -> dict[str, Any]:
        return {name: value}

    return rule
