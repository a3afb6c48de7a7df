"""What a cut would do, from config.json alone: layers, parameters, bytes, key-value cache, mixture of layer types."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch

from compress.base.disk import read_json
from compress.base.errors import InputError, UsageError
from compress.base.units import format_bytes, format_count
from compress.model.costs import costs_of
from compress.model.files import resolve_model
from compress.model.kinds import Kind, kind_of, require_causal
from compress.model.load import config_from, load_config
from compress.model.parts import count_parameters, decoder_layers, empty_model, why_no_model
from compress.prune.choose.candidates import RankAfterConfig
from compress.prune.choose.kinds import layer_kinds
from compress.prune.choose.mix import choose_layers, count_types, mix_note, require_attention
from compress.prune.choose.spec import format_layers
from compress.prune.experts.count import kept_experts, num_experts, write_count
from compress.prune.parts import ExpertsConfig, RankingConfig
from compress.prune.rules.student_config import num_layers, student_config, text_config
from compress.weights.casting import with_dtype

_MOST_CONTEXT = 32768

_COMPOSITES = (
    "model.layers", "model.language_model.layers", "language_model.model.layers", "language_model.layers",
    "model.text_model.layers", "text_model.model.layers", "backbone.layers",
)  # fmt: skip
"""Names that transformers turns into one another when it loads or saves a composite model's text part (Gemma 3), or a
model under its original names (Nemotron-H)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrunePlan:
    """The figures of a cut. Layers are 0-based; parameters count tied weights once; bytes are of the weights.

    Costs of a token are means over a context of `context_tokens` (see `compress.model.costs`): its share of the cache,
    its FLOPs in a prompt of that length; and the FLOPs of one more token after it.
    """

    teacher: str
    model_type: str
    kind: Kind
    keep: str
    kept_layers: tuple[int, ...]
    dropped_layers: tuple[int, ...]
    params_before: int
    params_after: int
    parts_before: dict[str, int]
    """Parameters by part: embeddings, attention, mlp, experts, ..."""
    parts_after: dict[str, int]
    dtype: str
    bytes_before: int
    bytes_after: int
    context_tokens: int
    """What the model is made for, at most 32,768."""
    prefill_flops_per_token_before: float
    prefill_flops_per_token_after: float
    decode_flops_per_token_before: float
    decode_flops_per_token_after: float
    cache_bytes_before: int
    """Keys, values and recurrent states after `context_tokens`."""
    cache_bytes_after: int
    kv_bytes_per_token_before: int
    kv_bytes_per_token_after: int
    layer_types_before: dict[str, int]
    layer_types_after: dict[str, int]
    notes: tuple[str, ...]
    experts_before: int | None = None
    """Experts of each sparse layer, where some are dropped."""
    experts_after: int | None = None

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
            *self._costs(),
            f"parts        {_changes(self.parts_before, self.parts_after)}",
        ]
        if self.experts_before is not None:
            lines.append(f"experts      {self.experts_before} -> {self.experts_after} in each layer that has them")
        if len(self.layer_types_before) > 1:
            lines.append(f"layer types  {_changes(self.layer_types_before, self.layer_types_after)}")
        if self.keep == "alternate" and self.kind == "causal" and 0 in self.dropped_layers:
            lines.append(
                "`alternate` drops the first layer here, which costs most: KL 12.5 nats to SmolLM2-135M, cut so. "
                f"Better: --layers {len(self.kept_layers)} --by kl-greedy --repair --calibration TEXT"
            )
        return "\n".join([*lines, *self.notes])

    def _costs(self) -> list[str]:
        """What a token costs before and after, as `describe` tells it."""
        flops = (
            f"FLOPs        {format_count(self.prefill_flops_per_token_before)} -> "
            f"{format_count(self.prefill_flops_per_token_after)} a token"
        )
        if self.kind == "masked":
            return [f"{flops} of a text of {self.context_tokens:,} tokens"]
        return [
            f"KV a token   {format_bytes(self.kv_bytes_per_token_before)} -> "
            f"{format_bytes(self.kv_bytes_per_token_after)}, mean of a context of {self.context_tokens:,} tokens",
            f"{flops} of such a prompt, {format_count(self.decode_flops_per_token_before)} -> "
            f"{format_count(self.decode_flops_per_token_after)} to write one after it",
        ]


def _changes(before: dict[str, int], after: dict[str, int]) -> str:
    return ", ".join(
        f"{name} {format_count(size)} -> {format_count(after.get(name, 0))}" for name, size in before.items()
    )


@dataclasses.dataclass(frozen=True)
class Derivation:
    """A plan with what the step needs to carry it out."""

    plan: PrunePlan
    student_json: dict[str, Any]
    """Content of the student's config.json."""
    student: Any
    """The config object made of it."""
    layer_prefixes: tuple[str, ...]
    """What keys of layer weights may start with on disk, before `.INDEX.`: `model.layers`, or `layers` where a
    checkpoint was saved without its head."""
    layer_types: tuple[str, ...]
    """Of each of the teacher's layers (see `layer_kinds`)."""


def plan_prune(
    teacher: str, keep: str | RankingConfig | RankAfterConfig = "alternate", cast: str | None = None
) -> PrunePlan:
    """Plan a cut of `teacher`, a folder or a hub id, reading its config.json only; see `derive` for a measure.

    `cast` is the dtype the student's weights would be stored in, by default the teacher's.

    Raises:
        UsageError: `keep` is no SPEC, or reaches outside the model's layers.
        InputError: the config is missing, broken, or has per-layer fields that the cut cannot express.
    """
    return cast_derivation(derive(teacher, resolve_model(teacher, weights=False), keep), cast).plan


def derive(
    teacher: str,
    folder: Path,
    keep: str | RankingConfig | RankAfterConfig,
    experts: ExpertsConfig | None = None,
) -> Derivation:
    """Plan a cut of the model in `folder`; `teacher` is the name the user gave. Raises as `plan_prune` does, and of
    `experts` as `kept_experts`.

    Which layers a measure will choose is not known from the config: `contiguous:N` stands in for them, and a note
    says so.
    """
    config, raw = load_config(folder), read_json(folder / "config.json")
    kind, total = kind_of(config), num_layers(config)
    notes: list[str] = []
    if not isinstance(keep, str):
        require_causal(config, teacher, "Choosing layers by a measure")
    if not isinstance(keep, str):
        how = keep.by if isinstance(keep, RankingConfig) else "what candidates become in a short heal"
        notes.append(f"The {keep.layers} layers that stay are chosen by {how}; these figures are of others.")
        keep = _stand_in(teacher, keep.layers, total)
    types = layer_kinds(text_config(config), total)
    kept = choose_layers(keep, types)
    require_attention(types, kept)
    student_json = student_config(config, raw, kept)
    fewer: dict[str, Any] = {}
    if experts is not None:
        text = text_config(config)
        count = kept_experts(experts, text, teacher)
        write_count(student_json, config, count)
        fewer = {"experts_before": num_experts(text, teacher), "experts_after": count}
    smaller, before, after = _models(config, student_json, folder)
    name, layers = decoder_layers(before)
    if len(layers) != total or len(decoder_layers(after)[1]) != len(kept):
        raise InputError(
            f"{type(before).__name__} keeps {len(layers)} layers in {name} for num_hidden_layers = {total}; this tool "
            "cuts only stacks in which they are one to one."
        )
    note = mix_note(types, kept)
    notes += [] if note is None or notes else [note]
    plan = PrunePlan(
        teacher=teacher,
        model_type=config.model_type,
        kind=kind,
        keep=keep,
        kept_layers=kept,
        dropped_layers=tuple(sorted(set(range(total)) - set(kept))),
        layer_types_before=count_types(types),
        layer_types_after=count_types([types[i] for i in kept]),
        notes=tuple(notes),
        **_figures(config, before, after),
        **fewer,
    )
    return Derivation(plan, student_json, smaller, stored_prefixes(name, before.base_model_prefix), tuple(types))


def _models(config: Any, student_json: dict[str, Any], folder: Path) -> tuple[Any, Any, Any]:
    """The student's config, and teacher and student without weights.

    Raises:
        InputError: no student can have such a config, or the teacher's makes no language model.
    """
    try:
        smaller = config_from(student_json, folder)
    except InputError as error:
        raise InputError(f"This {config.model_type} model cannot be cut so: {error}") from error
    try:
        return smaller, empty_model(copy.deepcopy(config)), empty_model(copy.deepcopy(smaller))
    except Exception as error:
        raise InputError(f"{folder / 'config.json'} makes no language model: {why_no_model(error)}") from error


def _figures(config: Any, before: Any, after: Any) -> dict[str, Any]:
    """The plan's numbers of both models, which have no weights and cannot be used for anything else afterwards."""
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.bfloat16
    context = min(getattr(text_config(config), "max_position_embeddings", None) or _MOST_CONTEXT, _MOST_CONTEXT)
    figures: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch."), "context_tokens": context}
    for when, model in (("before", before), ("after", after)):
        count = count_parameters(model)
        costs = costs_of(model)
        cache = costs.cache_bytes(context, dtype.itemsize)
        figures |= {
            f"params_{when}": count,
            f"parts_{when}": costs.parameters,
            f"bytes_{when}": count * dtype.itemsize,
            f"prefill_flops_per_token_{when}": costs.prefill_flops(context),
            f"decode_flops_per_token_{when}": costs.decode_flops(context),
            f"cache_bytes_{when}": cache,
            f"kv_bytes_per_token_{when}": round(cache / context),
        }
    return figures


def stored_prefixes(name: str, base: str) -> tuple[str, ...]:
    """What a stack's layers may be called on disk: as in the model, without its head, or within a composite model."""
    names = {name, name.removeprefix(base + "."), *(_COMPOSITES if name in _COMPOSITES else ())}
    return tuple(sorted(names))


def _stand_in(teacher: str, num_kept: int, total: int) -> str:
    """A SPEC of as many layers.

    Raises:
        UsageError: the model has fewer.
    """
    if num_kept > total:
        raise UsageError(f"layers = {num_kept}: {teacher} has {total} layers; write how many of them stay.")
    return f"contiguous:{num_kept}"


def cast_derivation(derivation: Derivation, cast: str | None) -> Derivation:
    """The plan and the config of a student whose weights are stored as `cast`."""
    plan = derivation.plan
    if cast is None or cast == plan.dtype:
        return derivation
    before, after = (getattr(torch, name).itemsize for name in (plan.dtype, cast))
    cache = plan.cache_bytes_after // before * after
    plan = dataclasses.replace(
        plan,
        dtype=cast,
        bytes_after=plan.bytes_after // before * after,
        cache_bytes_after=cache,
        kv_bytes_per_token_after=round(cache / plan.context_tokens),
        notes=(*plan.notes, f"The weights are cast from {plan.dtype} to {cast}."),
    )
    return dataclasses.replace(derivation, plan=plan, student_json=with_dtype(derivation.student_json, cast))
