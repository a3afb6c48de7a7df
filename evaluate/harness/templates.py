"""lm-eval's Jinja templates compiled once each: it compiles one for every text of every document."""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lm_eval.utils


@contextmanager
def cached_templates() -> Iterator[None]:
    """Let lm-eval render from compiled templates while the block runs."""
    original = lm_eval.utils.apply_template
    lm_eval.utils.apply_template = _apply_template
    try:
        yield
    finally:
        lm_eval.utils.apply_template = original


def _apply_template(template: str, doc: Mapping[str, Any]) -> str:
    rendered: str = _compiled(template).render(**doc)
    return rendered


@functools.lru_cache(maxsize=4096)
def _compiled(template: str) -> Any:
    return lm_eval.utils.env.from_string(template)
