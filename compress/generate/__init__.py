"""Text that a model writes: prompts in, answers out, as a data source like any other."""

from compress.generate.config import GenerateConfig
from compress.generate.writing import GenerateResult, generate

__all__ = ["GenerateConfig", "GenerateResult", "generate"]
