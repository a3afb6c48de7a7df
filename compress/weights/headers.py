"""The tensors of a teacher's safetensors files: where they lie, which ones a student keeps, and under what names.

A safetensors file is: header length (8 bytes, little endian), header (JSON: name -> dtype, shape, data_offsets),
data. See https://github.com/huggingface/safetensors.
"""

import dataclasses
import json
import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.base.errors import InputError
from compress.weights.special import is_prediction_head

if TYPE_CHECKING:
    from torch import Tensor

FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""safetensors' names of the float types, and torch's."""
ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2}


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor's bytes in a safetensors file. `start` counts from the file's beginning."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int

    @property
    def place(self) -> tuple[str, int]:
        """What the teacher's tensors are sorted by when they are read, and the student's when they are laid out."""
        return str(self.path), self.start


def file_start(path: Path) -> bytes:
    """A safetensors file up to its tensors: the header's length and the header."""
    with path.open("rb") as file:
        length = file.read(8)
        return length + file.read(int.from_bytes(length, "little"))


def read_header(path: Path) -> list[StoredTensor]:
    """Tensors of a safetensors file in the order of their bytes; `check_weight_files` has found it whole."""
    start = file_start(path)
    header: dict[str, Any] = json.loads(start[8:])
    header.pop("__metadata__", None)
    tensors = []
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors.append(StoredTensor(name, path, entry["dtype"], tuple(entry["shape"]), len(start) + begin, end - begin))
    return sorted(tensors, key=lambda tensor: tensor.start)


def layer_keys(prefixes: Sequence[str]) -> re.Pattern[str]:
    """What names of layer weights match whole: prefix, number of the layer, and the rest, in groups 1 to 3."""
    return re.compile(rf"({'|'.join(map(re.escape, prefixes))})\.(\d+)\.(.+)")


def select_tensors(
    files: Sequence[Path], prefixes: Sequence[str], kept: Sequence[int], num_layers: int
) -> list[tuple[str, StoredTensor]]:
    """The student's tensors, each with its new name: everything outside the layers, and the kept layers renumbered.

    Multi-token prediction heads, be they layers beyond the stack's `num_layers` or apart, are left out.

    Raises:
        InputError: two files hold a tensor of the same name, or a layer of the teacher has no weights.
    """
    in_layer = layer_keys(prefixes)
    new_index = {old: new for new, old in enumerate(kept)}
    stored = [tensor for path in files for tensor in read_header(path)]
    for name, count in Counter(tensor.name for tensor in stored).items():
        if count > 1:
            where = ", ".join(sorted(tensor.path.name for tensor in stored if tensor.name == name))
            raise InputError(f"{files[0].parent}: the tensor {name} is in several files ({where}); keep one of them.")
    chosen: list[tuple[str, StoredTensor]] = []
    seen: set[int] = set()
    for tensor in stored:
        match = in_layer.fullmatch(tensor.name)
        if match is None:
            if not is_prediction_head(tensor.name):
                chosen.append((tensor.name, tensor))
            continue
        layer = int(match[2])
        seen.add(layer)
        if layer in new_index:
            chosen.append((f"{match[1]}.{new_index[layer]}.{match[3]}", tensor))
    if missing := sorted(set(range(num_layers)) - seen):
        raise InputError(
            f"{files[0].parent} has no weights for layer {missing[0]} of {num_layers}: no key starts with "
            f"{' or '.join(f'{prefix}.{missing[0]}.' for prefix in prefixes)}. Its config.json is another model's."
        )
    return chosen


def likely_prefixes(files: Sequence[Path], config: dict[str, Any]) -> tuple[str, ...] | None:
    """What the keys of layer weights seem to start with, from the files' headers and config.json alone.

    That is the one prefix P of which keys `P.0.` to `P.(num_hidden_layers - 1).` exist and no others; None where
    there are several or none. Only the model itself can say for sure.
    """
    indices: dict[str, set[int]] = defaultdict(set)
    for name in (tensor.name for path in files for tensor in read_header(path)):
        if match := re.match(r"(.+?)\.(\d+)\.", name):
            indices[match[1]].add(int(match[2]))
    count = config.get("num_hidden_layers")
    found = [prefix for prefix, seen in indices.items() if isinstance(count, int) and seen == set(range(count))]
    return (found[0],) if len(found) == 1 else None


def replace_tensor(tensor: StoredTensor, value: "Tensor") -> None:
    """Write `value`, cast to the stored dtype, over a tensor's bytes in its file.

    A file that is a hard link gets bytes of its own first: what shares them stays as it is.

    Raises:
        InputError: the shapes differ, or `value` is not finite in the stored dtype.
    """
    import torch

    stored = value.detach().to("cpu", getattr(torch, FLOATS[tensor.dtype])).contiguous()
    if tuple(stored.shape) != tensor.shape or not stored.isfinite().all():
        raise InputError(
            f"The new value of {tensor.name}, {tuple(stored.shape)}, does not fit what is stored, {tensor.shape} "
            f"{tensor.dtype}: another shape, or numbers too large."
        )
    if os.stat(tensor.path).st_nlink > 1:
        own = tensor.path.with_name(tensor.path.name + ".partial")
        shutil.copyfile(tensor.path, own)
        os.replace(own, tensor.path)
    with tensor.path.open("r+b") as file:
        file.seek(tensor.start)
        file.write(stored.view(torch.uint8).numpy().tobytes())
