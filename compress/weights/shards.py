"""How a student's tensors lie in its safetensors files.

Tensors keep the order of the teacher's files, so that one pass over those, in order, writes every student's files in
order too. A file of the teacher that stays as it is, with all its tensors under their old names, stays a file.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.weights.headers import ITEM_BYTES, StoredTensor, file_start, read_header

Rows = bytes | bytearray | memoryview
Change = Callable[[memoryview], Rows]
"""Makes the student's bytes out of the next bytes of a teacher's tensor."""


@dataclasses.dataclass(frozen=True)
class StudentTensor:
    """A tensor of the student and the teacher's tensor it comes from.

    Without a `change` they are the same bytes. With one, `dtype` and `shape` are those of its result, and it is given
    the teacher's bytes in order, `grain` of them or a multiple: a number for a cast, a row for a choice of columns.
    """

    name: str
    source: StoredTensor
    dtype: str
    shape: tuple[int, ...]
    change: Change | None = None
    grain: int = 1

    @classmethod
    def same(cls, name: str, source: StoredTensor) -> "StudentTensor":
        """The teacher's tensor under another name."""
        return cls(name, source, source.dtype, source.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes in the student's file."""
        if self.change is None:
            return self.source.num_bytes
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of the student: its name, its tensors in the order of their bytes."""

    name: str
    tensors: tuple[StudentTensor, ...]
    whole: Path | None = None
    """The file of the teacher that this one repeats."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.num_bytes for tensor in self.tensors)

    def start(self) -> bytes:
        """What comes before the tensors' bytes: the header's length and the header, a multiple of 8 bytes."""
        if self.whole is not None:
            return file_start(self.whole)
        header: dict[str, Mapping[str, Any]] = {"__metadata__": {"format": "pt"}}
        end = 0
        for tensor in self.tensors:
            begin, end = end, end + tensor.num_bytes
            header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def split(tensors: Sequence[StudentTensor], max_shard_bytes: int) -> list[Shard]:
    """The student's files: model.safetensors, or numbered ones of at most `max_shard_bytes` or one larger tensor."""
    groups = list(_groups(tensors, max_shard_bytes))
    if len(groups) == 1:
        return [Shard("model.safetensors", *groups[0])]
    names = [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    return [Shard(name, *group) for name, group in zip(names, groups, strict=True)]


def index_json(shards: Sequence[Shard]) -> dict[str, Any]:
    """Content of model.safetensors.index.json."""
    weight_map = {tensor.name: shard.name for shard in shards for tensor in shard.tensors}
    total = sum(shard.num_bytes for shard in shards)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}


_Group = tuple[tuple[StudentTensor, ...], Path | None]


def _groups(tensors: Sequence[StudentTensor], max_shard_bytes: int) -> Iterator[_Group]:
    by_file: dict[Path, list[StudentTensor]] = {}
    for tensor in sorted(tensors, key=lambda tensor: tensor.source.place):
        by_file.setdefault(tensor.source.path, []).append(tensor)
    group: list[StudentTensor] = []
    size = 0
    for path, found in by_file.items():
        if sum(t.num_bytes for t in found) <= max_shard_bytes and _is_whole(path, found):
            if group:
                yield tuple(group), None
            yield tuple(found), path
            group, size = [], 0
            continue
        for tensor in found:
            misaligned = size % ITEM_BYTES.get(tensor.dtype, 1)  # wider numbers after an odd count of narrow ones
            if group and (size + tensor.num_bytes > max_shard_bytes or misaligned):
                yield tuple(group), None
                group, size = [], 0
            group.append(tensor)
            size += tensor.num_bytes
    if group or not tensors:
        yield tuple(group), None


def _is_whole(path: Path, kept: Sequence[StudentTensor]) -> bool:
    unchanged = all(tensor.change is None and tensor.name == tensor.source.name for tensor in kept)
    return unchanged and [tensor.source for tensor in kept] == read_header(path)
