"""Text that a model writes: prompts in, answers out, as a data source like any other.

Only the config is imported at once: options are read, and explained, without torch and transformers.
"""

from typing import TYPE_CHECKING, Any

from compress.generate.config import GenerateConfig

if TYPE_CHECKING:
    from compress.generate.writing import GenerateResult, generate

__all__ = ["GenerateConfig", "GenerateResult", "generate"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from compress.generate import writing

    return getattr(writing, name)
