"""What can be said of a distillation before text is prepared for it, or a weight is read."""

import copy
import dataclasses
import functools
import math
import os
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import GenerationConfig

from compress.base.disk import free_bytes, unfinished
from compress.base.errors import Faults, InputError, UsageError, reason_of
from compress.base.machine import default_device
from compress.base.outputs import check_outputs
from compress.base.packages import require_package
from compress.base.processes import count
from compress.base.units import format_bytes
from compress.data import TextFacts
from compress.distill.config import DistillConfig
from compress.distill.fit import check_held
from compress.distill.kinds import check_kinds
from compress.distill.loop.accelerator import check_launcher, check_trackers
from compress.distill.objective.objective import make_objective
from compress.distill.objective.part import Pair
from compress.distill.objective.schedules import format_value, most, weight_of
from compress.distill.plan import held_bytes
from compress.distill.publish import student_output
from compress.distill.resources.auto import resolve_attention, resolve_precision, resolve_sharding
from compress.distill.resources.schedule import budget, most_heldout_rows
from compress.distill.rollouts.planning import check_rollouts
from compress.distill.students.quantized import check_base
from compress.distill.teachers.cached import check_objective
from compress.distill.teachers.caching import check_rounding
from compress.distill.teachers.config import CacheConfig
from compress.distill.teachers.other_tokenizer import check_other_tokenizer, retelling_of
from compress.distill.teachers.planning import plan_cache
from compress.distill.teachers.quantization import check_quantization
from compress.model.cuts import kept_layers
from compress.model.facts import ModelFacts, look_at_model
from compress.model.files import resolve_model
from compress.model.kinds import model_class, require_causal, require_text_alone
from compress.model.lengths import check_rows
from compress.model.load import why_not_loaded
from compress.model.remote_code import trusted
from compress.model.vocabulary import common_ids


class Start(NamedTuple):
    """The folders that a training starts from."""

    student: Path
    teacher: Path | None
    others: tuple[Path, ...]
    """Teachers beside the first."""


def check_start(
    config: DistillConfig,
    *,
    student: str | Path,
    teacher: str | Path | None,
    out: Path,
    text: TextFacts | None,
    cached: str | None = None,
) -> Start:
    """Folders of student and teachers, found to have whole weights and one vocabulary, and all else that can be known.

    Raises:
        UsageError: no teacher at `alpha` above 0, `out` holds something that is no finished student, or options that
            cannot work with these models, this text or this machine.
        InputError: a model that is not there, whose weights are damaged, or tokenizers that differ.
    """
    faults = Faults()
    faults.of(lambda: _require_teacher(config, teacher, cached=cached))
    check_outputs([student_output(out)], faults)
    learner = _look(student, faults)
    guide = None if teacher is None else _look(teacher, faults)
    named = [] if config.mixture is None else config.mixture.with_
    others = [faults.of(lambda other=other: resolve_model(other.model, other.revision)) for other in named]  # type: ignore[misc]
    check_distill(config, student=learner, teacher=guide, text=text, cached=cached, faults=faults)
    if learner is not None and guide is not None:
        marked = text is not None and text.marked
        faults.of(lambda: check_tokens(config, learner, guide, cached=cached is not None, marked=marked))
    faults.refuse()
    assert learner is not None
    return Start(learner.side, None if guide is None else guide.side, tuple(filter(None, others)))


def check_tokens(
    config: DistillConfig,
    student: ModelFacts,
    teacher: ModelFacts,
    *,
    cached: bool,
    marked: bool,
    finetuned: bool = False,
) -> None:
    """Refuse two tokenizers that cannot be compared as the options ask: see `check_other_tokenizer`.

    Raises:
        InputError: as `common_ids` and `retelling_of`.
        UsageError: as `check_other_tokenizer`.
    """
    if retelling_of(config, student.side, teacher.side) is None:
        common_ids(student.side, teacher.side)
    else:
        common_ids(student.side, None)
        check_other_tokenizer(config, cached=cached, marked=marked, finetuned=finetuned)


def check_caching(
    config: CacheConfig,
    training: DistillConfig,
    *,
    teacher: ModelFacts | None,
    text: TextFacts | None,
    out: Path,
    faults: Faults,
) -> None:
    """Find what would refuse the making of a cache in `out`, as far as teacher and text are known."""
    device = default_device()
    faults.of(lambda: _check_compiler(training, device))
    if teacher is None or text is None:
        return
    faults.of(lambda: require_causal(teacher.config, teacher.name, "A cache of a teacher"))
    faults.of(lambda: require_text_alone(teacher.config, teacher.name, "A cache of a teacher"))
    vocabulary: int = teacher.config.get_text_config().vocab_size
    if config.kind == "topk" and config.k > vocabulary:
        faults.found.append(UsageError(f"k = {config.k}: {teacher.name} has {vocabulary} tokens in all; keep fewer."))
    rows = min(most_heldout_rows(training), text.num_heldout)
    faults.of(lambda: check_rounding(config, num_heldout=rows))
    faults.of(lambda: check_quantization(training, device, num_heldout=rows))
    faults.of(lambda: check_rows(text.seq_len, teacher.config, teacher.name))
    faults.of(lambda: _check_attention(training, teacher, device, text.seq_len))
    faults.of(lambda: _check_room(config, training, teacher, text, out))


def _check_room(config: CacheConfig, training: DistillConfig, teacher: ModelFacts, text: TextFacts, out: Path) -> None:
    """Refuse a cache that its disk has no room for.

    Raises:
        UsageError: it takes more bytes than are free, beside those that an unfinished one has by now.
    """
    bf16 = resolve_precision(training, default_device()) == "bf16"
    size = {"num_rows": text.num_rows or 0, "num_heldout": text.num_heldout, "seq_len": text.seq_len}
    plan = plan_cache(config, teacher.config, **size, bf16=bf16)
    there = sum(path.stat().st_size for path in unfinished(out).glob("*"))
    if plan.bytes - there > (free := free_bytes(out)):
        raise UsageError(
            f"The teacher's cache {out} takes {format_bytes(plan.bytes)}, {plan.bytes_per_token:,.0f} bytes a token, "
            f"and the disk has {format_bytes(free)} free. Name a folder on another disk, or ask for fewer "
            "data.tokens."
        )


def _look(name: str | Path, faults: Faults) -> ModelFacts | None:
    """A model that is here in full, downloaded if need be."""
    folder = faults.of(lambda: resolve_model(str(name)))
    return None if folder is None else look_at_model(str(folder), faults)


def check_distill(
    config: DistillConfig,
    *,
    student: ModelFacts | None,
    teacher: ModelFacts | None,
    text: TextFacts | None,
    faults: Faults,
    cached: str | None = None,
) -> None:
    """Find what would refuse a training, as far as models and text are known; `cached` is the kind of the cache that it
    would read."""
    device = default_device()
    others = other_teachers(config, faults)
    models = [model for model in (student, teacher, *others) if model is not None]
    faults.of(lambda: check_trackers(config))
    faults.of(check_launcher)
    faults.of(lambda: resolve_sharding(config, count()))
    faults.of(lambda: _check_compiler(config, device))
    faults.of(lambda: check_base(config, device, count()))
    if config.on_policy is not None:
        own, seq_len = config.on_policy, None if text is None else text.seq_len
        faults.of(lambda: check_rollouts(own, seq_len, cached=cached is not None))
    if config.optimizer == "adamw8bit":
        faults.of(lambda: require_package("torchao", "optimizer: adamw8bit"))
    if teacher is not None:
        rows = most_heldout_rows(config) if text is None else min(most_heldout_rows(config), text.num_heldout)
        faults.of(lambda: check_quantization(config, device, num_heldout=rows))
    if config.mixture is not None:
        faults.of(lambda: _check_mixture(cached))
    if text is not None:
        faults.of(lambda: _check_extent(config, text))
        if config.mixture is not None:
            faults.of(functools.partial(config.mixture.check_sources, text.sources))
        for model in models:
            faults.of(lambda model=model: check_rows(text.seq_len, model.config, model.name))  # type: ignore[misc]
            faults.of(lambda model=model: _check_attention(config, model, device, text.seq_len))  # type: ignore[misc]
    if student is not None:
        faults.of(lambda: check_generation_config(student))
        check_kinds(config, student, [model for model in models if model is not student], text, faults, cached=cached)
        faults.of(lambda: _check_memory(config, student, teacher, others, device, cached=cached))
        faults.of(lambda: _check_objective(config, student, teacher, cached=cached))
        for other in others:
            faults.of(functools.partial(_check_tokens, student, other))


def other_teachers(config: DistillConfig, faults: Faults) -> tuple[ModelFacts, ...]:
    """What is known of the teachers beside the first."""
    named = () if config.mixture is None else config.mixture.with_
    return tuple(filter(None, (look_at_model(each.model, faults, each.revision) for each in named)))


def _check_tokens(student: ModelFacts, teacher: ModelFacts) -> None:
    """Raises as `common_ids`, with the name of the teacher."""
    try:
        common_ids(student.side, teacher.side)
    except InputError as error:
        raise InputError(f"{teacher.name} (distill.mixture) cannot teach this student. {error}") from error


def _check_mixture(cached: str | None) -> None:
    """Refuse several teachers of which one is known by a few tokens.

    Raises:
        UsageError: its cache is of such a kind.
    """
    if cached not in (None, "hidden"):
        raise UsageError(
            f"distill.mixture needs the whole distribution of each teacher, which a cache of kind {cached} does not "
            "have: use kind: hidden, or train without a cache."
        )


def _require_teacher(config: DistillConfig, teacher: str | Path | None, *, cached: str | None) -> None:
    if teacher is None and cached is not None:
        raise UsageError("A cache is of a teacher, whose name says whether it is of the right one: name that too.")
    if teacher is None and config.on_policy is not None:
        raise UsageError("distill.on_policy learns what a teacher says of the student's text: name one.")
    if teacher is None and config.mixture is not None:
        raise UsageError("distill.mixture is of teachers beside the run's own: name that too.")
    if teacher is None and config.scored is not None:
        raise UsageError("distill.select and distill.order go by what a teacher says of the text: name one.")
    if teacher is None and most(weight_of(config, "soft")) > 0:
        raise UsageError(
            f"alpha = {format_value(config.alpha)} needs a teacher; name one, or set alpha to 0 to train on the text "
            "alone."
        )


def _check_objective(
    config: DistillConfig, student: ModelFacts, teacher: ModelFacts | None, *, cached: str | None
) -> None:
    """Refuse terms that cannot be made of these models, or of a cache.

    Raises:
        UsageError: as `make_objective` and `check_objective`.
    """
    objective = make_objective(config, _pair(student, teacher))
    if cached is not None:
        check_objective(config, objective.needs, cached)


def _check_extent(config: DistillConfig, text: TextFacts) -> None:
    """Raises as `budget`, which is asked for no more than is there where the rows are not counted yet."""
    if text.num_rows is None:
        asked = 1 if config.tokens is None else math.ceil(config.tokens / text.seq_len)
        budget(dataclasses.replace(config, select=None), num_rows=asked, seq_len=text.seq_len)
    else:
        budget(config, num_rows=text.num_rows, seq_len=text.seq_len)


def _check_attention(config: DistillConfig, model: ModelFacts, device: torch.device, seq_len: int) -> None:
    """Refuse a way to compute attention that the model, or this machine, does not have.

    Raises:
        UsageError: it does not.
    """
    asked = resolve_attention(config, device, seq_len)
    if asked == "flash_attention_2" and device.type == "cpu":
        raise UsageError(f"attention: {asked} runs on GPUs, and this machine has none: use sdpa, or leave it out.")
    if asked is None:
        return
    make = functools.partial(
        model_class(model.config).from_config, trust_remote_code=trusted(), attn_implementation=asked
    )
    try:
        with torch.device("meta"):
            make(copy.deepcopy(model.config))
    except (ImportError, ValueError) as error:
        raise UsageError(
            f"attention: {asked} cannot be had with {model.name} here ({why_not_loaded(error)}). Leave it out, or use "
            "another."
        ) from error


def _check_compiler(config: DistillConfig, device: torch.device) -> None:
    """Refuse `compile` where torch.compile has nothing to compile with.

    Raises:
        UsageError: no C++ compiler for a CPU, or no Triton for a GPU.
    """
    if config.compile is not True:
        return
    compilers = [name for name in (os.environ.get("CXX"), "g++", "clang++") if name and shutil.which(name)]
    if device.type == "cpu" and not compilers:
        raise UsageError("compile: true needs a C++ compiler on CPUs: install g++, or leave it out.")
    if device.type == "cuda" and find_spec("triton") is None:
        raise UsageError("compile: true needs the package triton on GPUs: `pip install triton`, or leave it out.")


def check_generation_config(model: ModelFacts) -> None:
    """Refuse a generation config that transformers loads and would not save again.

    Raises:
        InputError: it contradicts itself.
    """
    path = model.side / "generation_config.json"
    try:
        if path.is_file():
            GenerationConfig.from_pretrained(model.side).validate(strict=True)
        else:  # the config of an older model may say how to generate
            GenerationConfig.from_model_config(model.config).validate(strict=True)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} contradicts itself, so the trained student could not be saved: {reason_of(error)}. "
            'Mend it (often: add "do_sample": true, or remove the temperature).'
        ) from error


def _check_memory(
    config: DistillConfig,
    student: ModelFacts,
    teacher: ModelFacts | None,
    others: Sequence[ModelFacts],
    device: torch.device,
    *,
    cached: str | None,
) -> None:
    """Raises as `held_bytes`, where there are no such parts to train, and as `check_held`."""
    bf16 = resolve_precision(config, device) == "bf16"
    pair = _pair(student, teacher)._replace(others=tuple(other.config for other in others))
    check_held(held_bytes(config, pair, bf16=bf16, processes=count(), cached=cached is not None), device)


def _pair(student: ModelFacts, teacher: ModelFacts | None) -> Pair:
    source = None if teacher is None else teacher.config
    return Pair(student.config, source, kept_layers(student.cuts, source))
