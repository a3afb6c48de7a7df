"""What can be said of an evaluation before a model is loaded, or made."""

import dataclasses
import functools
from pathlib import Path

from compress.base.errors import Faults, InputError, UsageError
from compress.base.machine import find_device, memory_of
from compress.base.units import format_bytes
from compress.data import INDEX, TokenStore, check_text
from compress.data.alignment import Retelling
from compress.data.store.pictures import check_reader
from compress.evaluate.chat import check_chat
from compress.evaluate.config import EvalConfig
from compress.evaluate.presets import split_shots
from compress.evaluate.scores import identity
from compress.model.costs import model_costs
from compress.model.facts import ModelFacts, check_same_kind, require_mask_token
from compress.model.kinds import kind_of, require_causal
from compress.model.lengths import context_tokens
from compress.model.load import find_dtype
from compress.model.tokenizer import chat_template
from compress.model.vocabulary import check_store, same_tokens


def check_evaluation(
    config: EvalConfig, *, model: ModelFacts | None, teacher: ModelFacts | None, text: str | None, faults: Faults
) -> None:
    """Find what would refuse to measure a model on `text` (a token store or a SOURCE; None: not now) and on other text,
    but for the tasks: see `compress.evaluate.harness.catalog.check_tasks`."""
    faults.of(lambda: find_device(config.device))
    if model is not None and teacher is not None:
        faults.of(lambda: check_same_kind(model, teacher))
    if model is not None and kind_of(model.config) == "masked":
        faults.of(lambda: _check_masked(config, model))
        config = config.of_masked()
    for source in filter(None, (text, config.other_text)):
        check_text(source, config.text_column, faults)
        if model is not None and (Path(source) / INDEX).is_file():
            faults.of(functools.partial(_check_store, source, model))
    if model is not None and teacher is not None:
        faults.of(lambda: _check_tokenizers(model, teacher))
    if model is not None:
        faults.of(lambda: check_chat(config, model))
        faults.of(lambda: with_names(config, teacher or model))
    if model is not None and config.speed:
        faults.of(lambda: _check_speed(config, model))


def with_names(config: EvalConfig, teacher: ModelFacts) -> EvalConfig:
    """The same with the names that the task `identity` looks for, where it is asked for: those given, else those that
    the teacher's name and chat template tell.

    Raises:
        UsageError: none is given and they tell none.
    """
    if config.identity or identity.TASK not in {split_shots(task)[0] for task in config.tasks}:
        return config
    template = chat_template(teacher.tokenizer) or ""
    names = identity.names_told(teacher.name, getattr(teacher.config, "_name_or_path", ""), template)
    if not names:
        raise UsageError(
            f"The task {identity.TASK} asks whether answers name the family or maker of {teacher.name}, which its name "
            "and chat template do not tell: write them, eval.identity: [FAMILY, MAKER]."
        )
    return dataclasses.replace(config, identity=names)


def _check_masked(config: EvalConfig, model: ModelFacts) -> None:
    """Refuse what a masked language model cannot be asked.

    Raises:
        UsageError: benchmarks or chats.
        InputError: as `require_mask_token`.
    """
    require_mask_token(model)
    if config.tasks:
        require_causal(model.config, model.name, "A benchmark (eval.tasks), which is scored by the text that follows,")
    if config.chat_template:
        require_causal(model.config, model.name, "eval.chat_template")


def _check_tokenizers(model: ModelFacts, teacher: ModelFacts) -> None:
    """Refuse a teacher of another tokenizer that cannot be given the model's text; raises as `Retelling`."""
    if not same_tokens(model.side, teacher.side):
        Retelling(model.tokenizer, teacher.tokenizer)


def _check_speed(config: EvalConfig, model: ModelFacts) -> None:
    """Refuse a speed measurement whose weights and key-value cache alone exceed all memory there is.

    Raises:
        UsageError: they do.
    """
    device = find_device(config.device)
    bytes_per_value = find_dtype(config.dtype, model.side, device).itemsize
    batch = max([config.speed_batch, *config.speed_batches])
    context = config.speed_prompt_tokens + config.speed_decode_tokens
    try:
        costs = model_costs(model.config)
    except Exception:  # code of a model's own may not run without weights: then this is not known
        return
    tokens = min(context, context_tokens(model.config) or context)
    weights = bytes_per_value * sum(costs.parameters.values())
    needed, there = weights + batch * costs.cache_bytes(tokens, bytes_per_value), memory_of(device).total
    if needed > there:
        raise UsageError(
            f"Speed with {batch} sequences of {tokens} tokens side by side needs {format_bytes(needed)} for weights "
            f"and key-value cache of {model.name} alone, and {device} has {format_bytes(there)}. Lower "
            "eval.speed_batch or eval.speed_batches, or set eval.speed to false."
        )


def _check_store(text: str, model: ModelFacts) -> None:
    """Refuse a token store that the model cannot read, or that holds nothing to measure on.

    Raises:
        InputError: it was made with another tokenizer, its rows exceed the model's context, or none is held out.
    """
    store = TokenStore.open(text)
    check_store(store, model.tokenizer, model.name, context=context_tokens(model.config))
    if store.pictured:
        check_reader(model.side, model.name)
    if not store.num_heldout:
        raise InputError(f"{text} has no held-out rows to measure on: prepare it with data.heldout_sequences.")
