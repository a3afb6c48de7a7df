"""The whole of what `compress export`, or a recipe's `export:` section, can be asked."""

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from compress.base.config import config

Format = Literal["int8", "int4", "gguf-f16", "gguf-q8_0", "gguf-q4_0", "bf16", "f16", "f32"]
CASTS = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
"""Formats that are only another dtype, and torch's name of it."""
_GGUF = "gguf-"


def is_gguf_format(name: str) -> bool:
    """Whether a format is a GGUF file, rather than a model folder."""
    return name.startswith(_GGUF)


def gguf_type(name: str) -> str:
    """How the matrices of a GGUF format are stored: f16, q8_0, ..."""
    return name.removeprefix(_GGUF)


def model_file(name: str) -> str:
    """The name of the file of a GGUF format."""
    return f"model-{gguf_type(name)}.gguf"


def _several(value: Any) -> Any:
    """One name as a tuple of one. What is strict takes no list where a validator came first."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


@config
class ExportConfig:
    """In which formats a model is exported."""

    format: Annotated[tuple[Format, ...], Field(min_length=1), BeforeValidator(_several)]
    """FORMAT: int8 and int4 (torchao), gguf-f16, gguf-q8_0 and gguf-q4_0, or safetensors as bf16, f16 or f32; one, or
    several, each of which gets a folder of its name."""
    group_size: Literal[32, 64, 128] = 32
    """Weights of a row that share a scale, with int4."""
    check: bool = True
    """Load what was written and compare its weights and logits with the model's."""

    def __post_init__(self) -> None:
        if len(set(self.format)) < len(self.format):
            raise ValueError("`format` names one twice; write each once")

    def only(self, name: Format) -> "ExportConfig":
        """The same for one format, without what that does not depend on."""
        group_size = self.group_size if name == "int4" else ExportConfig(format=(name,)).group_size
        return dataclasses.replace(self, format=(name,), group_size=group_size)
