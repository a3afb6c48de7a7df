"""A model folder as one GGUF file, laid out as llama.cpp's converter does; written tensor by tensor.

The format is described in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, the blocks of q8_0 and q4_0 (32
numbers and a float16 scale) in gguf's `quants`.
"""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from compress.base.errors import InputError
from compress.base.progress import progress_bar
from compress.model.files import check_weight_files
from compress.model.load import load_config
from compress.ship.exporting.config import gguf_type
from compress.ship.exporting.gguf_kinds import Kind, kind_of, write_shape
from compress.ship.exporting.gguf_tokenizer import gguf_tokenizer
from compress.weights.headers import StoredTensor, read_header
from compress.weights.room import require_space

_Names = Any
"""gguf's table of tensor names."""


def check_gguf(name: str, model_config: Any, side: Path) -> None:
    """Refuse a model that has no form in GGUF; its tokenizer lies in `side`.

    Raises:
        InputError: its type or a value of its config has no name there, or its tokenizer none.
    """
    kind_of(name, model_config)
    gguf_tokenizer(name, side, model_config.vocab_size)


def write_gguf(student: Path, file: Path, format: str, title: str) -> None:
    """Write the model in `student` to `file`; matrices as the format says, vectors in float32.

    Rows that are no multiple of a block stay float16.

    Raises:
        InputError: as `check_gguf`, or a tensor has no name in GGUF.
        CompressError: the disk has no room.
    """
    import gguf

    config = load_config(student)
    kind = kind_of(str(student), config)
    wanted = gguf.GGMLQuantizationType[gguf_type(format).upper()]
    tensors = [tensor for path in check_weight_files(student) for tensor in read_header(path)]
    if config.tie_word_embeddings:
        tensors = [tensor for tensor in tensors if tensor.name != "lm_head.weight"]
    require_space(file.parent, sum(_num_bytes(tensor, wanted) for tensor in tensors))
    architecture = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == kind.architecture)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    with _writer(file, kind.architecture) as writer:
        writer.add_name(title)
        writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{wanted.name}"])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        write_shape(writer, config)
        gguf_tokenizer(str(student), student, config.vocab_size).write(writer)
        for tensor in tensors:
            place = _named(tensor, names, student)
            size, stored = _num_bytes(tensor, wanted), _type(tensor, wanted)
            writer.add_tensor_info(place, tensor.shape, np.dtype(np.float32), size, raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with progress_bar(f"writing {file.name}", len(tensors), unit="tensors") as bar:
            for tensor in tensors:
                writer.write_tensor_data(_stored(_arranged(_read(tensor), tensor, kind, config), tensor, wanted))
                bar.advance()


@contextlib.contextmanager
def _writer(file: Path, architecture: str) -> Iterator[Any]:
    import gguf

    writer = gguf.GGUFWriter(file, architecture)
    try:
        yield writer
    finally:
        writer.close()


def _named(tensor: StoredTensor, names: _Names, student: Path) -> str:
    found: str | None = names.get_name(tensor.name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise InputError(
            f"{student}: the tensor {tensor.name} has no name in a GGUF file. Export the model as int8 or int4."
        )
    return found


def _type(tensor: StoredTensor, wanted: Any) -> Any:
    """How a tensor is stored: vectors in float32, rows that do not fill blocks in float16."""
    import gguf

    if len(tensor.shape) < 2:
        return gguf.GGMLQuantizationType.F32
    whole = tensor.shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0] == 0
    return wanted if whole else gguf.GGMLQuantizationType.F16


def _stored(value: NDArray[np.float32], tensor: StoredTensor, wanted: Any) -> NDArray[Any]:
    """A tensor in the numbers or blocks that it is stored in."""
    import gguf

    with np.errstate(over="ignore", invalid="ignore"):
        made: NDArray[Any] = gguf.quantize(value, _type(tensor, wanted))
    if made.dtype != np.uint8 and not np.isfinite(made).all():
        raise InputError(
            f"{tensor.path}: the tensor {tensor.name} holds numbers that are not finite, or too large for float16. "
            "Export the model as bf16 or f32."
        )
    return made


def _num_bytes(tensor: StoredTensor, wanted: Any) -> int:
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[_type(tensor, wanted)]
    return math.prod(tensor.shape) // int(block) * int(size)


def _read(tensor: StoredTensor) -> NDArray[np.float32]:
    with safe_open(tensor.path, framework="pt") as file:
        value: NDArray[np.float32] = file.get_tensor(tensor.name).float().numpy()
    return value


def _arranged(value: NDArray[np.float32], tensor: StoredTensor, kind: Kind, config: Any) -> NDArray[np.float32]:
    """A tensor with rotating pairs of queries and keys where the kind has them."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    part = tensor.name.split(".")[-2]
    if not kind.pairs_rotate or part not in heads:
        return value
    halves = value.reshape(heads[part], 2, -1, *value.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(value.shape)
