"""compress: turn a Hugging Face causal LM into a smaller, faster one, and prove what it kept."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.run.pipeline import run_recipe as run_recipe

__version__ = "0.1.0"
__all__ = ["__version__", "run_recipe"]


def __getattr__(name: str) -> Any:
    if name == "run_recipe":
        from compress.run.pipeline import run_recipe

        return run_recipe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
