"""A student in training, to be read rather than trained: it writes, or is scored."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from compress.distill.resources.attention import has_no_mask


@contextlib.contextmanager
def as_it_is(student: Any, accelerator: Any) -> Iterator[None]:
    """A student in training to be read: without dropout, in the run's precision, with attention that sees a cache and
    padding, and nothing compiled for shapes that come once."""
    attention = student.config._attn_implementation
    student.eval()
    if has_no_mask(student):
        student.set_attn_implementation("sdpa")
    try:
        with accelerator.autocast(), _not_compiled(student):
            yield
    finally:
        student.train()
        if student.config._attn_implementation != attention:
            student.set_attn_implementation(attention)


def _not_compiled(student: Any) -> contextlib.AbstractContextManager[Any]:
    """Shapes that come once are not worth compiling for; of a model that is not compiled, nothing changes."""
    compiled = student.base_model._compiled_call_impl is not None
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
