"""What becomes of a config field that says something about single layers: one function a kind of field.

A rule reads the teacher's fields and returns the student's values for the fields it settles (`REMOVED` takes one
out). It raises `NotExpressible` when the student cannot say what the teacher says. `fields.py` is the table of which
field follows which rule.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Final


class NotExpressible(Exception):
    """A field's meaning cannot be written for the kept layers; the text says why."""


@dataclasses.dataclass(frozen=True)
class Renumbering:
    """The layers of `num_layers` that stay, increasing: each gets its place in `kept` as its new number."""

    kept: tuple[int, ...]
    num_layers: int

    def __post_init__(self) -> None:
        assert self.kept
        assert list(self.kept) == sorted({*self.kept} & {*range(self.num_layers)})


REMOVED: Final = object()
Fields = Mapping[str, Any]
Rule = Callable[[str, Fields, Renumbering], dict[str, Any]]


def each_layer(name: str, fields: Fields, cut: Renumbering) -> dict[str, Any]:
    """One entry a layer: keep the kept layers' entries. A scalar holds for all layers and stays."""
    value = fields[name]
    if not isinstance(value, list | tuple):
        return {}
    if not value:
        return {}
    if len(value) != cut.num_layers:
        raise NotExpressible(f"it has {len(value)} entries for {cut.num_layers} layers")
    return {name: [value[layer] for layer in cut.kept]}


def layer_indices(name: str, fields: Fields, cut: Renumbering) -> dict[str, Any]:
    """A list of layer indices: keep those of kept layers, renumbered."""
    value = fields[name]
    if not isinstance(value, list | tuple):
        raise NotExpressible(f"it is {value!r}, not a list of layer indices")
    if any(not isinstance(i, int) or not 0 <= i < cut.num_layers for i in value):
        raise NotExpressible(f"it names layers outside 0 to {cut.num_layers - 1}")
    return {name: [new for new, old in enumerate(cut.kept) if old in value]}


def layer_keys(name: str, fields: Fields, cut: Renumbering) -> dict[str, Any]:
    """A mapping from layer index (as a number or as text) to settings: keep the kept layers' entries, renumbered."""
    value = fields[name]
    if not isinstance(value, Mapping) or not all(str(key).isdigit() for key in value):
        raise NotExpressible("it is not a mapping from layer indices")
    by_layer = {int(key): setting for key, setting in value.items()}
    return {name: {str(new): by_layer[old] for new, old in enumerate(cut.kept) if old in by_layer}}


def stack_size(name: str, fields: Fields, cut: Renumbering) -> dict[str, Any]:
    """Another name of the number of layers."""
    return {name: len(cut.kept)}


def prefix_count(name: str, fields: Fields, cut: Renumbering) -> dict[str, Any]:
    """How many layers from the first on are special: count the kept ones among them."""
    return {name: sum(layer < fields[name] for layer in cut.kept)}


def repeated_pattern(name: str, fields: Fields, cut: Renumbering) -> dict[str, Any]:
    """A pattern repeated along the stack: write it out, one entry a kept layer."""
    pattern = fields[name]
    return {name: [pattern[layer % len(pattern)] for layer in cut.kept]}


def sparse_step(name: str, fields: Fields, cut: Renumbering) -> dict[str, Any]:
    """Every `step`-th layer is a mixture of experts unless `mlp_only_layers` names it: name every dense layer.

    Layer i is sparse when (i + 1) % step == 0 and i is not in `mlp_only_layers` (qwen2_moe, qwen3_moe). The rule of
    both fields.
    """
    step, dense = fields.get("decoder_sparse_step", 1), fields.get("mlp_only_layers") or []
    if step == 1:
        return layer_indices(name, fields, cut) if name == "mlp_only_layers" else {}
    if not step:
        raise NotExpressible(f"its step is {step!r}")
    written = [new for new, old in enumerate(cut.kept) if (old + 1) % step != 0 or old in dense]
    return {"decoder_sparse_step": 1, "mlp_only_layers": written}


def period(step: str, offset: str) -> Rule:
    """Layers i with i % step == offset are special (jamba): the step and offset that single out the kept ones.

    Where `layers_block_type` is a list, that alone says which layers are special (zamba).
    """

    def rule(name: str, fields: Fields, cut: Renumbering) -> dict[str, Any]:
        if isinstance(fields.get("layers_block_type"), list):
            return {}
        special = [new for new, old in enumerate(cut.kept) if old % fields[step] == fields[offset]]
        total = len(cut.kept)
        first = special[0] if special else total
        for length in range(first + 1, total + 2):
            if list(range(first, total, length)) == special:
                return {step: length, offset: first}
        raise NotExpressible(f"no step and offset single out the layers {special} of the {total} kept ones")

    return rule


def interval(name: str, fields: Fields, cut: Renumbering) -> dict[str, Any]:
    """Layers i from start to end with (i + 1) % step == 0 have experts (ernie4_5_moe): those that single out the kept.

    The rule of `moe_layer_interval`, `moe_layer_start_index` and `moe_layer_end_index`.
    """
    step, start, end = (fields[f"moe_layer_{part}"] for part in ("interval", "start_index", "end_index"))
    last = cut.num_layers - 1 if end == -1 else end
    sparse = [new for new, old in enumerate(cut.kept) if (old + 1) % step == 0 and start <= old <= last]
    total = len(cut.kept)
    if not sparse:
        return {"moe_layer_interval": 1, "moe_layer_start_index": total, "moe_layer_end_index": total - 1}
    for length in range(1, total + 1):
        if [i for i in range(sparse[0], sparse[-1] + 1) if (i + 1) % length == 0] == sparse:
            return {
                "moe_layer_interval": length,
                "moe_layer_start_index": sparse[0],
                "moe_layer_end_index": sparse[-1],
            }
    raise NotExpressible(f"no start, end and interval single out the layers {sparse} of the {total} kept ones")


def one_based(name: str, fields: Fields, cut: Renumbering) -> dict[str, Any]:
    """A list of layer numbers from 1 on: keep those of kept layers, renumbered."""
    return {name: [new + 1 for new, old in enumerate(cut.kept) if old + 1 in fields[name]]}


def depth_scale(name: str, fields: Fields, cut: Renumbering) -> dict[str, Any]:
    """Residuals are multiplied by value / sqrt(number of layers) (minicpm3): the value that leaves the product."""
    return {name: fields[name] * math.sqrt(len(cut.kept) / cut.num_layers)}


def shared_indexer(name: str, fields: Fields, cut: Renumbering) -> dict[str, Any]:
    """A `shared` layer attends to what the last `full` one before it has chosen, which must stay too."""
    modes = fields[name]
    for layer in cut.kept:
        source = max((i for i in range(layer + 1) if modes[i] == "full"), default=None)
        if source is not None and source not in cut.kept:
            raise NotExpressible(f"layer {layer} attends to what layer {source} chooses, which is dropped")
    return each_layer(name, fields, cut)


def shared_key_values(name: str, fields: Fields, cut: Renumbering) -> dict[str, Any]:
    """The last `count` layers read the keys and values of the last layer of their type before them (gemma3n, gemma4).

    Recount them; a layer whose source is dropped, or would be another one, cannot stay.
    """
    count, types = fields[name], fields.get("layer_types")
    if not count:
        return {}
    if not isinstance(types, list | tuple) or len(types) != cut.num_layers:
        raise NotExpressible("no list layer_types says which layers share keys and values")
    first = cut.num_layers - count
    readers = [layer for layer in cut.kept if layer >= first]
    writers = [layer for layer in cut.kept if layer < first]
    for layer in readers:
        source = max((i for i in range(first) if types[i] == types[layer]), default=None)
        if source not in writers:
            raise NotExpressible(f"layer {layer} reads the keys and values of layer {source}, which is dropped")
    if readers and {types[i] for i in writers} != {types[i] for i in cut.kept}:
        raise NotExpressible("every type of layer needs one that makes keys and values")
    return {name: len(readers)}


def gpt_neo_types(name: str, fields: Fields, cut: Renumbering) -> dict[str, Any]:
    """`[[pattern, repeats], ...]` (gpt_neo): the kept layers' types, written out and repeated once."""
    written = [kind for pattern, repeats in fields[name] for _ in range(repeats) for kind in pattern]
    if len(written) != cut.num_layers:
        raise NotExpressible(f"it describes {len(written)} layers of {cut.num_layers}")
    return {name: [[[written[layer] for layer in cut.kept], 1]]}


def written_out_by(other: str) -> Rule:
    """A period that only fills the list `other` when that is absent: the student has the list and not the period."""

    def rule(name: str, fields: Fields, cut: Renumbering) -> dict[str, Any]:
        if not isinstance(fields.get(other), list):
            raise NotExpressible(f"no list {other} says which layers it makes")
        return {name: REMOVED}

    return rule


def only(*values: Any, why: str) -> Rule:
    """A field that cannot be translated, harmless at these values."""

    def rule(name: str, fields: Fields, cut: Renumbering) -> dict[str, Any]:
        if fields[name] not in values:
            raise NotExpressible(why)
        return {}

    return rule


def becomes(value: Any) -> Rule:
    """A count of parts that the student does not have."""

    def rule(name: str, fields: Fields, cut: Renumbering) -> dict[str, Any]:
        return {name: value}

    return rule
