"""What can be said of an evaluation before a model is loaded, or made."""

from pathlib import Path

from compress.base.errors import Faults
from compress.base.machine import find_device
from compress.data import INDEX, TokenStore, check_text
from compress.evaluate.config import EvalConfig
from compress.evaluate.text.language import check_same_tokenizer
from compress.model.facts import ModelFacts
from compress.model.lengths import context_tokens
from compress.model.vocabulary import check_store


def check_evaluation(
    config: EvalConfig, *, model: ModelFacts | None, teacher: ModelFacts | None, text: str | None, faults: Faults
) -> None:
    """Find what would refuse to measure a model on `text` (a token store or a SOURCE; None: not now), but for the
    tasks: see `compress.evaluate.harness.catalog.check_tasks`."""
    faults.of(lambda: find_device(config.device))
    if text is not None:
        check_text(text, config.text_column, faults)
    if model is not None and text is not None and (Path(text) / INDEX).is_file():
        faults.of(lambda: _check_store(text, model))
    if model is not None and teacher is not None:
        faults.of(lambda: check_same_tokenizer(model, teacher))


def _check_store(text: str, model: ModelFacts) -> None:
    check_store(TokenStore.open(text), model.tokenizer, model.name, context=context_tokens(model.config))
