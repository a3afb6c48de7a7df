"""A model of two: what is outside the layers and the layers that stayed are the student's, the others the teacher's."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from compress.base.errors import InputError
from compress.model.files import check_weight_files
from compress.model.load import load_model
from compress.model.parts import decoder_layers
from compress.prune.growth.plan import Growth
from compress.weights.casting import main_dtype, student_tensors
from compress.weights.headers import FLOATS, StoredTensor, layer_keys, select_tensors
from compress.weights.shards import StudentTensor
from compress.weights.special import is_per_layer

_Layers = Mapping[int, Mapping[str, StoredTensor]]
"""Tensors by layer, and by what follows its number in their names."""


class Blocks:
    """The stored tensors of a student and its teacher."""

    def __init__(self, growth: Growth, prefixes: Sequence[str]) -> None:
        """Find them; `prefixes` is what keys of layer weights may start with.

        Raises:
            InputError: a layer has no weights, the student's layers are not like the teacher's, or a tensor outside
                them has a part for each.
        """
        self._growth = growth
        kept = range(len(growth.kept))
        own = select_tensors(check_weight_files(growth.student), prefixes, kept, len(kept))
        every = range(growth.num_layers)
        given = select_tensors(check_weight_files(growth.teacher), prefixes, every, len(every))
        self._dtype = main_dtype([tensor for _, tensor in own])
        self._own, self._prefix, self._outside = _by_layer(own, prefixes)
        self._given = _by_layer(given, prefixes)[0]
        self._check()

    def tensors(self, layers: Sequence[int]) -> list[StudentTensor]:
        """Those of the model with these of the teacher's layers, under their new names; the teacher's in the dtype that
        the student's are stored in."""
        found = [StudentTensor.same(tensor.name, tensor) for tensor in self._outside]
        given: list[tuple[str, StoredTensor]] = []
        for number, layer in enumerate(layers):
            place = f"{self._prefix}.{number}"
            if layer in self._growth.kept:
                block = self._own[self._growth.kept.index(layer)]
                found += [StudentTensor.same(f"{place}.{tail}", tensor) for tail, tensor in block.items()]
            else:
                given += [(f"{place}.{tail}", tensor) for tail, tensor in self._given[layer].items()]
        every = range(self._growth.num_layers)
        return found + student_tensors(given, self._dtype and FLOATS[self._dtype], every, len(every))

    def _check(self) -> None:
        for number, layer in enumerate(self._growth.kept):
            own, given = (_shapes(of[at]) for of, at in ((self._own, number), (self._given, layer)))
            if differing := sorted(name for name in {*own, *given} if own.get(name) != given.get(name)):
                raise InputError(
                    f"Layer {number} of {self._growth.student} is not like layer {layer} of {self._growth.name}, from "
                    f"which it was cut: {', '.join(differing[:3])} differ in name or shape. Blocks of the one cannot "
                    "stand beside blocks of the other."
                )
        if tables := [tensor.name for tensor in self._outside if is_per_layer(tensor.name)]:
            raise InputError(
                f"{self._growth.student} has {tables[0]}, a table with a part for each layer, in which healed parts "
                "and the teacher's cannot be told apart; such a model cannot be grown."
            )


def put_in(model: Any, growth: Growth) -> None:
    """Give the teacher `model`, in memory, the student's weights: outside the layers, and in those that stayed."""
    student = load_model(growth.student, dtype=model.dtype, device=model.device)
    place = f"{decoder_layers(student)[0]}."
    renamed: dict[str, torch.Tensor] = {}
    for name, value in student.state_dict().items():
        if name.startswith(place):
            number, _, tail = name.removeprefix(place).partition(".")
            name = f"{place}{growth.kept[int(number)]}.{tail}"
        renamed[name] = value
    unexpected = model.load_state_dict(renamed, strict=False).unexpected_keys
    assert not unexpected, unexpected


def _by_layer(
    named: Sequence[tuple[str, StoredTensor]], prefixes: Sequence[str]
) -> tuple[_Layers, str, list[StoredTensor]]:
    """Tensors of the layers, the prefix of their names, and the tensors outside."""
    keys, layers, outside = layer_keys(prefixes), defaultdict[int, dict[str, StoredTensor]](dict), []
    seen: Counter[str] = Counter()
    for name, tensor in named:
        if (match := keys.fullmatch(name)) is None:
            outside.append(tensor)
        else:
            layers[int(match[2])][match[3]] = tensor
            seen[match[1]] += 1
    return layers, max(seen, key=lambda prefix: seen[prefix]), outside


def _shapes(block: Mapping[str, StoredTensor]) -> dict[str, tuple[int, ...]]:
    return {tail: tensor.shape for tail, tensor in block.items()}
