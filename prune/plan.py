"""What a cut would do, from config.json alone: layers, parameters, bytes, key-value cache, mixture of layer types."""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from compress.architecture import count_parameters, decoder_layers, empty_model, kv_bytes_per_token
from compress.artifacts import read_json
from compress.errors import InputError, UsageError
from compress.models import load_config, resolve_model
from compress.prune.casting import cast_derivation
from compress.prune.config import RankingConfig
from compress.prune.mix import count_types, mix_note, require_attention
from compress.prune.spec import format_layers, parse_spec
from compress.prune.student_config import num_layers, student_config
from compress.units import format_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrunePlan:
    """The figures of a cut. Layers are 0-based; parameters count tied weights once; bytes are of the weights."""

    teacher: str
    model_type: str
    keep: str
    kept_layers: tuple[int, ...]
    dropped_layers: tuple[int, ...]
    params_before: int
    params_after: int
    dtype: str
    bytes_before: int
    bytes_after: int
    kv_bytes_per_token_before: int
    kv_bytes_per_token_after: int
    layer_types_before: dict[str, int]
    layer_types_after: dict[str, int]
    notes: tuple[str, ...]

    @property
    def num_layers(self) -> int:
        """Layers of the teacher."""
        return len(self.kept_layers) + len(self.dropped_layers)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON data."""
        return dataclasses.asdict(self)

    def describe(self) -> str:
        """The plan for people, a few lines."""
        less = 100 * (1 - self.params_after / self.params_before)
        lines = [
            f"{self.teacher} ({self.model_type}): keep {len(self.kept_layers)} of {self.num_layers} layers: "
            f"{format_layers(self.kept_layers)}",
            f"parameters   {self.params_before:,} -> {self.params_after:,} ({less:.1f}% fewer)",
            f"weights      {format_bytes(self.bytes_before)} -> {format_bytes(self.bytes_after)} in {self.dtype}",
            f"KV a token   {format_bytes(self.kv_bytes_per_token_before)} -> "
            f"{format_bytes(self.kv_bytes_per_token_after)}",
        ]
        return "\n".join([*lines, *self.notes])


@dataclasses.dataclass(frozen=True)
class Derivation:
    """A plan with what the step needs to carry it out."""

    plan: PrunePlan
    student_json: dict[str, Any]
    """Content of the student's config.json."""
    layer_prefixes: tuple[str, ...]
    """What keys of layer weights may start with on disk, before `.INDEX.`: `model.layers`, or `layers` where a
    checkpoint was saved without its head."""


def plan_prune(teacher: str, keep: str | RankingConfig = "alternate", cast: str | None = None) -> PrunePlan:
    """Plan a cut of `teacher`, a folder or a hub id, reading its config.json only; see `derive` for a measure.

    `cast` is the dtype the student's weights would be stored in, by default the teacher's.

    Raises:
        UsageError: `keep` is no SPEC, or reaches outside the model's layers.
        InputError: the config is missing, broken, or has per-layer fields that the cut cannot express.
    """
    return cast_derivation(derive(teacher, resolve_model(teacher, weights=False), keep), cast).plan


def derive(teacher: str, folder: Path, keep: str | RankingConfig) -> Derivation:
    """Plan a cut of the model in `folder`; `teacher` is the name the user gave. Raises as `plan_prune` does.

    Which layers a measure will choose is not known from the config: `contiguous:N` stands in for them, and a note
    says so.
    """
    config, raw = load_config(folder), read_json(folder / "config.json")
    total = num_layers(config)
    notes: list[str] = []
    if isinstance(keep, RankingConfig):
        notes.append(f"The {keep.layers} layers that stay are chosen by {keep.by}; these figures are of others.")
        keep = _stand_in(teacher, keep.layers, total)
    kept = parse_spec(keep, total)
    types = _layer_types(config, total)
    require_attention(types, kept)
    student_json = student_config(config, raw, kept)
    try:
        smaller = type(config).from_dict(copy.deepcopy(student_json))
        before, after = empty_model(config), empty_model(smaller)
    except Exception as error:
        raise InputError(
            f"{folder / 'config.json'} makes no causal LM: {' '.join(str(error).split())[:400]}"
        ) from error
    name, layers = decoder_layers(before)
    if len(layers) != total or len(decoder_layers(after)[1]) != len(kept):
        raise InputError(
            f"{type(before).__name__} keeps {len(layers)} layers in {name} for num_hidden_layers = {total}; this tool "
            "cuts only stacks in which they are one to one."
        )
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.bfloat16
    counts = count_parameters(before), count_parameters(after)
    note = mix_note(types, kept)
    notes += [] if note is None or notes else [note]
    plan = PrunePlan(
        teacher=teacher,
        model_type=config.model_type,
        keep=keep,
        kept_layers=kept,
        dropped_layers=tuple(sorted(set(range(total)) - set(kept))),
        params_before=counts[0],
        params_after=counts[1],
        dtype=str(dtype).removeprefix("torch."),
        bytes_before=counts[0] * dtype.itemsize,
        bytes_after=counts[1] * dtype.itemsize,
        kv_bytes_per_token_before=kv_bytes_per_token(config, dtype.itemsize),
        kv_bytes_per_token_after=kv_bytes_per_token(smaller, dtype.itemsize),
        layer_types_before=count_types(types),
        layer_types_after=count_types([types[i] for i in kept]),
        notes=tuple(notes),
    )
    return Derivation(plan, student_json, tuple({name, name.removeprefix(before.base_model_prefix + ".")}))


def _stand_in(teacher: str, num_kept: int, total: int) -> str:
    """A SPEC of as many layers.

    Raises:
        UsageError: the model has fewer.
    """
    if num_kept > total:
        raise UsageError(f"layers = {num_kept}: {teacher} has {total} layers; write how many of them stay.")
    return f"contiguous:{num_kept}"


def _layer_types(config: Any, total: int) -> Sequence[str]:
    """Type of each layer; a model without `layer_types` has one kind, sliding when it has a window."""
    text = config.get_text_config()
    types = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None)
    if isinstance(types, list) and len(types) == total:
        return types
    window = getattr(text, "sliding_window", None)
    return [("full" if window is None else "sliding") + "_attention"] * total
