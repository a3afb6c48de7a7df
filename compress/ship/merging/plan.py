"""Whether models go together: one architecture, one table of tensors, one tokenizer."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.base.disk import read_json
from compress.base.errors import Faults, InputError, UsageError
from compress.base.outputs import Output, check_outputs
from compress.base.units import format_count
from compress.model.facts import ModelFacts, look_at_model
from compress.model.files import check_weight_files
from compress.model.kinds import require_text_alone
from compress.model.parts import count_parameters, empty_model
from compress.model.tokenizer import tokenizer_fingerprint
from compress.ship.merging.config import MergeConfig
from compress.weights.headers import FLOATS, StoredTensor, read_header

_OF_NO_WEIGHT = frozenset(
    {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures"}
)
"""Fields of config.json that may differ: they say nothing of what the weights mean."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergePlan:
    """Models that go together, the base behind the others where there is one."""

    models: Sequence[ModelFacts]
    tensors: Sequence[Mapping[str, StoredTensor]]
    """Those of each, by name."""
    num_models: int
    """Without the base."""

    @property
    def parameters(self) -> int:
        """Of one model."""
        return count_parameters(empty_model(copy.deepcopy(self.models[0].config)))

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON data."""
        names = [model.name for model in self.models]
        base = next(iter(names[self.num_models :]), None)
        return {"models": names[: self.num_models], "base": base, "params": self.parameters}

    def describe(self) -> str:
        """The plan for people."""
        return f"{self.num_models} models of {len(self.tensors[0])} tensors, {format_count(self.parameters)} parameters"


def plan_merge(models: Sequence[str], out: Path, config: MergeConfig) -> MergePlan:
    """Look whether the models, and the base where there is one, go together; nothing but headers is read.

    Raises:
        UsageError: too few or too many models for the method or its weights, or `out` is not free.
        InputError: a model cannot be used, or is not like the first: the message names the first difference.
    """
    faults = Faults()
    check_outputs([merged_output(out)], faults)
    faults.of(lambda: _check_number(len(models), config))
    names = [*models, *([config.base] if config.base is not None else [])]
    found = [look_at_model(name, faults) for name in names]
    facts = [each for each in found if each is not None]
    for each in facts:
        faults.of(lambda each=each: require_text_alone(each.config, each.name, "Merging"))  # type: ignore[misc]
    faults.refuse()
    for other in facts[1:]:
        faults.of(lambda other=other: _check_alike(facts[0], other))  # type: ignore[misc]
    faults.refuse()
    tensors = [_tensors(each) for each in facts]
    for other, its in zip(facts[1:], tensors[1:], strict=True):
        _check_tensors(facts[0], tensors[0], other, its)
    return MergePlan(models=facts, tensors=tensors, num_models=len(models))


def merged_output(out: Path) -> Output:
    """The folder of a merged model, which no other may take the place of."""
    return Output(out, "a merged model", ours=None, folder=True)


def _check_number(count: int, config: MergeConfig) -> None:
    if count < 2:
        raise UsageError("compress merge takes two models or more, and then the folder to write: A B ... OUT.")
    if config.method == "slerp" and count != 2:
        raise UsageError(f"slerp is between two models, and {count} are given: use linear, ties or important.")
    if config.weights is not None and len(config.weights) != count:
        raise UsageError(f"--weights has {len(config.weights)} numbers for {count} models: write one for each.")


def _check_alike(first: ModelFacts, other: ModelFacts) -> None:
    """Compare two models' configs and tokenizers.

    Raises:
        InputError: a field differs, one is quantised, or their tokenizers differ.
    """
    mine, its = (
        {key: value for key, value in read_json(each.side / "config.json").items() if key not in _OF_NO_WEIGHT}
        for each in (first, other)
    )
    for key in sorted(mine.keys() | its.keys()):
        if mine.get(key) != its.get(key):
            raise InputError(
                f"{other.name} is not like {first.name}: {key} in config.json is {its.get(key)!r} and "
                f"{mine.get(key)!r}. Only models of one architecture, as trainings of one model are, can be merged."
            )
    if "quantization_config" in mine:
        raise InputError(
            f"{first.name} is quantised: merge the models that were quantised, and export what comes of it."
        )
    if tokenizer_fingerprint(first.tokenizer) != tokenizer_fingerprint(other.tokenizer):
        raise InputError(
            f"{other.name} has another tokenizer than {first.name}, so their embeddings are of other tokens: they "
            "cannot be merged."
        )


def _tensors(model: ModelFacts) -> dict[str, StoredTensor]:
    return {tensor.name: tensor for path in check_weight_files(model.side) for tensor in read_header(path)}


def _check_tensors(
    first: ModelFacts, mine: Mapping[str, StoredTensor], other: ModelFacts, its: Mapping[str, StoredTensor]
) -> None:
    for name in sorted(mine.keys() | its.keys()):
        if name not in mine or name not in its:
            has, lacks = (first, other) if name in mine else (other, first)
            raise InputError(f"{has.name} has the tensor {name}, and {lacks.name} has not: they cannot be merged.")
        if mine[name].shape != its[name].shape:
            raise InputError(
                f"{name} is {its[name].shape} in {other.name} and {mine[name].shape} in {first.name}: they cannot be "
                "merged."
            )
        if (mine[name].dtype in FLOATS) != (its[name].dtype in FLOATS):
            raise InputError(
                f"{name} is stored as {its[name].dtype} in {other.name} and as {mine[name].dtype} in {first.name}: "
                "they cannot be merged."
            )
