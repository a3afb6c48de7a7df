"""index.json of a token store: what must be in it, what names its content, and which files it speaks of."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from compress.base.disk import sha256_json

INDEX = "index.json"
FORMAT = "compress-token-store-1"
_CONTENT = ("seq_len", "dtype", "vocab_size", "eos_id", "tokenizer_sha256", "train", "heldout")
_BESIDE = ("marks", "places", "images")
"""Files that a shard may have beside its ids."""
Count = Annotated[int, Field(ge=0, lt=2**48)]


class _Shape(BaseModel):
    model_config = ConfigDict(strict=True)


_FileName = Annotated[str, Field(pattern=r"^(source-[0-9]+/)?[a-z0-9-]+\.(bin|marks|places|images)$")]


class _Beside(_Shape):
    file: _FileName
    sha256: str


class _Shard(_Shape):
    file: _FileName
    rows: Count
    sha256: str
    marks: _Beside | None = None
    places: _Beside | None = None
    images: _Beside | None = None


class _Train(_Shape):
    rows: Count
    shards: list[_Shard]


class _NoRows(_Shape):
    rows: Literal[0]


class _HeldOut(_Shard):
    bytes: list[Count]
    parts: list[list[Count]] | None = None
    sources: list[Count] | None = None


class _Framing(_Shape):
    documents: list[Count]
    rows: list[Count]
    decided: dict[str, Any] | None


class _Source(_Shape):
    name: str
    rows: Count
    heldout_rows: Count


class _Manifest(_Shape):
    config: dict[str, Any]


class _Instructions(_Shape):
    apart: bool
    form: str = ""
    template_sha256: str
    processor_sha256: str | None = None


class Index(_Shape):
    """What a store, and those who compare it with what is asked for, rely on in its index.json."""

    seq_len: Annotated[Count, Field(ge=1)]
    dtype: Literal["uint16", "uint32"]
    vocab_size: Count
    eos_id: Count
    tokenizer_sha256: str
    fingerprint: str
    train: _Train
    heldout: _HeldOut | _NoRows
    framing: _Framing | None = None
    instructions: _Instructions | None = None
    sources: list[_Source] | None = None
    identity: dict[str, Any]
    source: dict[str, Any]
    manifest: _Manifest


def fingerprint_of(index: Mapping[str, Any]) -> str:
    """SHA-256 of a store's content: its shape, its tokenizer and the hashes of its rows, however they were made."""
    return sha256_json({key: index[key] for key in _CONTENT})


def hashes_of(index: Mapping[str, Any]) -> dict[str, str]:
    """The SHA-256 of each file of a store, by its name."""
    shards = [*index["train"]["shards"], *([index["heldout"]] if index["heldout"]["rows"] else [])]
    return {file["file"]: file["sha256"] for shard in shards for file in files_of(shard)}


def files_of(shard: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What an index's entry of a shard says of each of its files."""
    return [shard, *(shard[kind] for kind in _BESIDE if shard.get(kind))]
