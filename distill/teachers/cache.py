"""A cache of the teacher's signals on one token store: a folder of rows, the output head, and an index.

    CACHE/rows-*.bin, rows.table   what is kept of each row of the store (see `kinds`, `row_files`); after them, of each
                                   held-out row the last hidden states, whatever the kind: what trainings are compared
                                   by is exact
    CACHE/head.safetensors         the output head that makes logits of them, in the same dtype
    CACHE/index.json               what it is, what it was made of, the SHA-256 of each file; written last

It belongs to one teacher and one text, known by their content, wherever they lie.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from compress.base.config import build_from
from compress.base.disk import read_json, sha256_file, sha256_json
from compress.base.errors import InputError
from compress.base.outputs import Output, has_manifest
from compress.base.units import format_bytes, format_count, format_seconds
from compress.distill.objective.sparse import Sparse
from compress.distill.rows.batch import Ids
from compress.distill.teachers.config import CacheConfig
from compress.distill.teachers.kinds import SPARSE, Draws, MostLikely, read_hidden, read_rounded
from compress.distill.teachers.row_files import ENTRY, TABLE, RowReader
from compress.model.parts import OutputHead

INDEX = "index.json"
FORMAT = "compress-teacher-cache-1"
HEAD = "head.safetensors"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_AGAIN = "Make it anew with `compress cache`."
_NOT_CONTENT = ("fingerprint", "manifest")

Count = Annotated[int, Field(ge=1, lt=2**48)]


class _Shard(BaseModel):
    model_config = ConfigDict(strict=True)
    file: str
    rows: Count
    bytes: Count
    sha256: str


class _Manifest(BaseModel):
    config: dict[str, Any]
    inputs: dict[str, Any]
    outputs: dict[str, str]


class _Index(BaseModel):
    """What those who read a cache rely on in its index.json."""

    model_config = ConfigDict(strict=True)
    kind: Literal["hidden", "samples", "topk"]
    precision: Literal["fp32", "bf16"]
    teacher_precision: str
    teacher_kl: float | None
    rounding_kl: float | None = None
    apart: bool
    seq_len: Count
    num_rows: Count
    num_heldout: Annotated[int, Field(ge=0)]
    width: Count
    vocabulary: Count
    head: dict[str, float | None]
    shards: Annotated[list[_Shard], Field(min_length=1)]
    fingerprint: str
    manifest: _Manifest


def fingerprint_of(index: Mapping[str, Any]) -> str:
    """SHA-256 of what a cache holds and is of, however and where it was made."""
    made = index["manifest"]
    content = {key: value for key, value in index.items() if key not in _NOT_CONTENT}
    return sha256_json({**content, "inputs": made["inputs"], "outputs": made["outputs"]})


class TeacherCache:
    """The teacher's signals for each row of a token store; `index` is index.json as it is on disk."""

    def __init__(self, path: Path, index: dict[str, Any]) -> None:
        self.path, self.index = path, index
        self.kind: str = index["kind"]
        self.precision: str = index["precision"]
        self.fingerprint: str = index["fingerprint"]
        self.teacher_kl: float | None = index["teacher_kl"]
        self.vocabulary: int = index["vocabulary"]
        """Token ids that the head has."""
        self.inputs: dict[str, str] = index["manifest"]["inputs"]
        """The fingerprints of its `teacher` and its `data`, as of a training."""
        self.rounding_kl: float | None = index.get("rounding_kl")
        """KL(exact || rounded) of hidden states that are kept in 8 bits, on held-out rows, nats a token."""
        self._shape = (index["seq_len"], index["width"])
        self._heldout_from: int = index["num_rows"] - index["num_heldout"]
        self._rows = RowReader(path, index["shards"], index["manifest"]["outputs"][TABLE])

    @classmethod
    def open(cls, path: Path) -> "TeacherCache":
        """Open a cache and check its index and the sizes of its files; a row's content is checked when it is read.

        Raises:
            InputError: no cache, one of another format, or a file that is missing or has the wrong size.
        """
        if not (path / INDEX).is_file():
            raise InputError(f"{path} is no cache of a teacher: it has no {INDEX}. Make it with `compress cache`.")
        index = read_json(path / INDEX)
        if not isinstance(index, dict) or index.get("format") != FORMAT:
            raise InputError(f"{path / INDEX} is not the index of a teacher's cache of the format {FORMAT}.")
        try:
            _Index.model_validate(index)
        except ValidationError as error:
            fault = error.errors()[0]
            field = ".".join(map(str, fault["loc"]))
            raise InputError(f"{path / INDEX} is damaged ({field}: {fault['msg']}). {_AGAIN}") from error
        if index["fingerprint"] != fingerprint_of(index) or not _adds_up(index):
            raise InputError(f"{path / INDEX} was changed after it was written. {_AGAIN}")
        for name, size in [
            *((shard["file"], shard["bytes"]) for shard in index["shards"]),
            (TABLE, index["num_rows"] * ENTRY.itemsize),
            (HEAD, None),
        ]:
            _check_size(path / name, size)
        return cls(path, index)

    def describe(self) -> dict[str, Any]:
        """Field `cache` of distill.json."""
        length, width = self._shape
        size = sum(shard["bytes"] for shard in self.index["shards"])
        heldout = self.index["num_heldout"] * length * width * DTYPES[self.precision].itemsize
        per_token = (size - heldout) / (self._heldout_from * length)
        rounded = {} if self.rounding_kl is None else {"rounding_kl": self.rounding_kl}
        found = {"folder": str(self.path), "kind": self.kind, "bytes": size, "bytes_per_token": round(per_token, 1)}
        return {**found, **rounded}

    @property
    def record(self) -> dict[str, Any]:
        """What it is, as plain JSON data."""
        return {**self.index, "path": str(self.path)}

    def text(self) -> str:
        """What it is, for people."""
        found, rows = self.describe(), self.index["num_rows"]
        rounded = "" if self.rounding_kl is None else f" in 8 bits ({self.rounding_kl:.2g} nats a token off)"
        tokens, seconds = format_count(rows * self._shape[0]), self.index["manifest"]["seconds"]
        return (
            f"{self.kind}{rounded} of {tokens} tokens in {rows} rows, {format_bytes(found['bytes'])}, "
            f"{found['bytes_per_token']:g} bytes a token, {format_seconds(seconds)}\nwritten to {self.path}"
        )

    def is_sparse(self, row_ids: Ids) -> bool:
        """Whether `sparse` has these rows, or `states`; they are all to train on, or all held out."""
        return self.kind != "hidden" and bool((row_ids < self._heldout_from).all())

    def sparse(self, row_ids: Ids) -> Sparse:
        """What is known of the teacher's distribution at each place [B, S] of these rows of the store.

        Raises:
            InputError: a row is damaged.
        """
        return self._form.decode([self._rows.read(int(row)) for row in row_ids], self._shape[0])

    @cached_property
    def _config(self) -> CacheConfig:
        made = self.index["manifest"]["config"]
        known = {field.name for field in dataclasses.fields(CacheConfig)}
        return build_from(CacheConfig, {name: made[name] for name in made if name in known}, str(self.path))

    @cached_property
    def _form(self) -> Draws | MostLikely:
        return SPARSE[self.kind](self._config, self.vocabulary)

    def states(self, row_ids: Ids) -> Tensor:
        """Last hidden states [B, S, D] of these rows of the store, held-out ones numbered after the others.

        The rows are all to train on, or all held out.

        Raises:
            InputError: a row is damaged.
        """
        rows, dtype = [self._rows.read(int(row)) for row in row_ids], DTYPES[self.precision]
        if self._config.rows == "int8" and bool((row_ids < self._heldout_from).all()):
            return read_rounded(rows, *self._shape, dtype)
        return read_hidden(rows, self._shape[0], dtype)

    def will_need(self, row_ids: Iterable[int]) -> None:
        """Have the system read these rows ahead."""
        self._rows.will_need(map(int, row_ids))

    def head(self) -> OutputHead:
        """What makes logits of the states.

        Raises:
            InputError: its file is damaged.
        """
        path = self.path / HEAD
        if sha256_file(path) != self.index["manifest"]["outputs"].get(HEAD):
            raise InputError(f"{path} is not as it was written. {_AGAIN}")
        tensors, numbers = load_file(path), self.index["head"]
        return OutputHead(tensors["weight"], tensors.get("bias"), numbers["scale"], numbers["softcap"])


def save_head(head: OutputHead, folder: Path) -> dict[str, float | None]:
    """Write an output head into a cache's folder; returns field `head` of the index."""
    tensors = {"weight": head.weight, **({} if head.bias is None else {"bias": head.bias})}
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / HEAD)
    return {"scale": head.scale, "softcap": head.softcap}


def cache_output(out: Path) -> Output:
    """The folder of a cache."""
    is_index = has_manifest("format", "fingerprint", "kind")
    return Output(out, "a teacher's cache", lambda folder: is_index(folder / INDEX), folder=True)


def _adds_up(index: Mapping[str, Any]) -> bool:
    names = [shard["file"] for shard in index["shards"]]
    of_rows = sum(shard["rows"] for shard in index["shards"])
    return bool(of_rows == index["num_rows"] and {*names, TABLE, HEAD} == index["manifest"]["outputs"].keys())


def _check_size(path: Path, expected: int | None) -> None:
    """`expected` None takes any size.

    Raises:
        InputError: the file is missing, or has another size.
    """
    if "/" in path.name or not path.is_file():
        raise InputError(f"{path} is missing, though the index names it. {_AGAIN}")
    if expected is not None and path.stat().st_size != expected:
        raise InputError(f"{path} has {path.stat().st_size} bytes, not {expected}. {_AGAIN}")
