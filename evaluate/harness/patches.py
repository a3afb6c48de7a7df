"""All that we change in lm-eval and in `datasets`: what, why, and until when. No other file touches their insides.

A change holds while its `with` block runs, for the whole process. What needs no change has a door of its own: our
backend is a subclass of lm-eval's `HFLM`, and enters its table of models by `register_model`.
"""

import contextlib
import functools
import io
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import datasets
import lm_eval.api.task
import lm_eval.utils
from datasets.utils import are_progress_bars_disabled

from compress.base.progress import progress_bar
from compress.base.signals import check_interrupt

_BAR_FROM_ITEMS = 200
_ALONE = "DISABLE_MULTIPROC"


@contextmanager
def cached_templates() -> Iterator[None]:
    """Changes `lm_eval.utils.apply_template`, to keep each compiled Jinja template.

    Why: lm-eval compiles one for every text of every document.
    Until: lm-eval keeps them itself (0.4.13 does not).
    """
    with _replaced(lm_eval.utils, "apply_template", _apply_template):
        yield


def _apply_template(template: str, doc: Mapping[str, Any]) -> str:
    rendered: str = _compiled(template).render(**doc)
    return rendered


@functools.lru_cache(maxsize=4096)
def _compiled(template: str) -> Any:
    return lm_eval.utils.env.from_string(template)


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Changes lm-eval's bar over documents to ours, its log to errors alone, its stdout to nothing, and lets its
    bootstrap of standard errors start no processes.

    Why: what it prints belongs neither on stdout, where a result may be read, nor to the user; its bar would not stop
    at a signal; and the bootstrap, of so few draws, has no more than one chunk of work for its processes.
    Until: `evaluator.evaluate` can be told so by arguments.
    """
    logger = logging.getLogger("lm_eval")
    level, alone = logger.level, os.environ.get(_ALONE)
    logger.setLevel(logging.ERROR)
    os.environ[_ALONE] = "1"
    try:
        with _replaced(lm_eval.api.task, "tqdm", _preparation_bar), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        if alone is None:
            del os.environ[_ALONE]


def _preparation_bar(documents: Iterable[Any], total: int = 0, **_: Any) -> Iterator[Any]:
    """Stands in for tqdm where lm-eval builds a task's prompts."""
    with progress_bar("Preparing prompts", total, unit="items", visible=total >= _BAR_FROM_ITEMS) as bar:
        for document in documents:
            check_interrupt()
            yield document
            bar.advance()


@contextmanager
def data_sets_from(load: Callable[..., Any]) -> Iterator[None]:
    """Changes `datasets.load_dataset` to `load`, and hides the bars of `datasets`.

    Why: tasks call it in their constructors, with a hub id written in a YAML or hard-wired in a class, so it is the one
    place that sees every request.
    Until: lm-eval can be told where data sets lie. A task's module that imports the function by name keeps `load` when
    the block is over, so `load` must do then what the original does.
    """
    silent = are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with _replaced(datasets, "load_dataset", load):
            yield
    finally:
        if not silent:
            datasets.enable_progress_bars()


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)
