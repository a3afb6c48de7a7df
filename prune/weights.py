"""Copy the kept layers' weights from the teacher's safetensors files to the student's, byte for byte.

No tensor is ever made: a file's header says where each tensor's bytes lie, and they go through one buffer to their
new file, hashed and checked for NaN and infinity on the way. Memory is the buffer; time is the disk's.

A safetensors file is: header length (8 bytes, little endian), header (JSON: name -> dtype, shape, data_offsets),
data. See https://github.com/huggingface/safetensors.
"""

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from compress.artifacts import write_json
from compress.errors import InputError
from compress.progress import Bar, progress_bar
from compress.prune.special import Blocks, is_prediction_head, layer_blocks

MAX_SHARD_BYTES = 5 * 10**9
_BUFFER_BYTES = 1 << 23
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2}


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor's bytes in a safetensors file. `start` counts from the file's beginning."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int
    blocks: Blocks | None = None
    """Which parts of the stored bytes make this tensor, when not all do; `shape` and `num_bytes` are of those."""


def read_header(path: Path) -> list[StoredTensor]:
    """Tensors of a safetensors file in the order of their bytes; `models.check_weight_files` has found it whole."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    tensors = []
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors.append(StoredTensor(name, path, entry["dtype"], tuple(entry["shape"]), 8 + length + begin, end - begin))
    return sorted(tensors, key=lambda tensor: tensor.start)


def select_tensors(
    files: Sequence[Path], prefixes: Sequence[str], kept: Sequence[int], num_layers: int
) -> list[tuple[str, StoredTensor]]:
    """The student's tensors, each with its new name: everything outside the layers, and the kept layers renumbered.

    Multi-token prediction heads, be they layers beyond the stack's `num_layers` or apart, are left out; of weights
    that hold a part for each layer, the kept layers' parts stay.

    Raises:
        InputError: two files hold a tensor of the same name, or a layer of the teacher has no weights.
    """
    in_layer = re.compile(rf"({'|'.join(map(re.escape, prefixes))})\.(\d+)\.(.+)")
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
                chosen.append((tensor.name, _kept_part(tensor, kept, num_layers)))
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


def _kept_part(tensor: StoredTensor, kept: Sequence[int], num_layers: int) -> StoredTensor:
    blocks = layer_blocks(tensor.name, tensor.shape, tensor.num_bytes, kept, num_layers)
    if blocks is None:
        return tensor
    return dataclasses.replace(tensor, shape=blocks.shape, num_bytes=blocks.num_bytes, blocks=blocks)


def copy_weights(
    tensors: Sequence[tuple[str, StoredTensor]], out: Path, max_shard_bytes: int = MAX_SHARD_BYTES
) -> dict[str, str]:
    """Write `tensors` into `out` as model.safetensors, or as numbered shards with an index; return SHA-256 by file.

    A shard holds at most `max_shard_bytes` of tensors, or one larger tensor.

    Raises:
        InputError: a tensor holds NaN or infinity, or its file ends early; the message names both.
        OSError: the disk is full.
    """
    shards = list(_split(tensors, max_shard_bytes))
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    total = sum(tensor.num_bytes for _, tensor in tensors)
    with progress_bar("copying weights, MiB", total >> 20) as bar:
        progress = _Progress(bar)
        sha256 = {name: _write_shard(out / name, shard, progress) for name, shard in zip(names, shards, strict=True)}
    if len(shards) > 1:
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key, _ in shard}
        index = out / "model.safetensors.index.json"
        write_json(index, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
        sha256[index.name] = hashlib.sha256(index.read_bytes()).hexdigest()
    return sha256


def replace_tensor(tensor: StoredTensor, value: Tensor) -> None:
    """Write `value`, cast to the stored dtype, over a tensor's bytes in its file.

    Raises:
        InputError: the shapes differ, or `value` is not finite in the stored dtype.
    """
    stored = value.detach().to("cpu", _FLOATS[tensor.dtype]).contiguous()
    if tuple(stored.shape) != tensor.shape or not stored.isfinite().all():
        raise InputError(
            f"The new value of {tensor.name}, {tuple(stored.shape)}, does not fit what is stored, {tensor.shape} "
            f"{tensor.dtype}: another shape, or numbers too large."
        )
    with tensor.path.open("r+b") as file:
        file.seek(tensor.start)
        file.write(stored.view(torch.uint8).numpy().tobytes())


def _split(
    tensors: Iterable[tuple[str, StoredTensor]], max_shard_bytes: int
) -> Iterator[list[tuple[str, StoredTensor]]]:
    shard: list[tuple[str, StoredTensor]] = []
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.num_bytes > max_shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append((name, tensor))
        size += tensor.num_bytes
    yield shard


def _write_shard(path: Path, tensors: list[tuple[str, StoredTensor]], progress: "_Progress") -> str:
    """Write one file, wider numbers first so that each tensor is aligned; return its SHA-256."""
    tensors = sorted(tensors, key=lambda item: -_ITEM_BYTES.get(item[1].dtype, 1))
    header: dict[str, Mapping[str, Any]] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors:
        begin, end = end, end + tensor.num_bytes
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(start)
    buffer = bytearray(_BUFFER_BYTES)
    with path.open("wb") as target:
        target.write(start)
        for _, tensor in tensors:
            with tensor.path.open("rb") as source:
                for chunk in _chunks(source, tensor, buffer):
                    digest.update(chunk)
                    target.write(chunk)
                    progress.advance(len(chunk))
    return digest.hexdigest()


def _chunks(source: BinaryIO, tensor: StoredTensor, buffer: bytearray) -> Iterator[memoryview]:
    view = memoryview(buffer)
    for begin, left in [(0, tensor.num_bytes)] if tensor.blocks is None else tensor.blocks.ranges():
        source.seek(tensor.start + begin)
        while left:
            size = min(left, len(buffer) if tensor.blocks is None else tensor.blocks.whole_rows(len(buffer)))
            if source.readinto(view[:size]) != size:  # type: ignore[attr-defined]
                raise InputError(f"{tensor.path} ends inside the tensor {tensor.name}: download it again.")
            _require_finite(buffer, size, tensor)
            yield view[:size] if tensor.blocks is None else tensor.blocks.pick(view[:size])
            left -= size


def _require_finite(buffer: bytearray, size: int, tensor: StoredTensor) -> None:
    dtype = _FLOATS.get(tensor.dtype)
    if dtype is None:
        return
    values = torch.frombuffer(buffer, dtype=dtype, count=size // dtype.itemsize)
    low, high = torch.aminmax(values)  # passes NaN on, and reads the numbers 20 times faster than isfinite
    if not (low.isfinite() and high.isfinite()):
        raise InputError(
            f"{tensor.path}: the tensor {tensor.name} holds NaN or infinity. The file is damaged, or the training that "
            "made it diverged: download it again, or use an earlier checkpoint."
        )


class _Progress:
    """Turns bytes into the bar's MiB."""

    def __init__(self, bar: Bar) -> None:
        self._bar, self._bytes, self._shown = bar, 0, 0

    def advance(self, count: int) -> None:
        self._bytes += count
        if step := (self._bytes >> 20) - self._shown:
            self._shown += step
            self._bar.advance(step)
