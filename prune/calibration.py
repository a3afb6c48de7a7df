"""The text that layer importance is measured on, as rows of token ids."""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from compress.config import config
from compress.data import INDEX, TokenStore, read_start, text_fingerprint, tokenizer_fingerprint
from compress.errors import InputError, UsageError
from compress.models import load_config, load_tokenizer
from compress.units import Count

AtLeastOne = Annotated[Count, Field(ge=1)]


@config
class CalibrationConfig:
    """Which text the model is measured on, and how it is run on it."""

    calibration: str | None = None
    """SOURCE: `hub:ORG/NAME[:CONFIG]`, a local file, folder or glob of parquet, arrow, jsonl(.gz, .zst) or txt, or a
    token store (its training rows). In a recipe None is the run's own training rows."""
    calibration_tokens: AtLeastOne = 256_000
    """Tokens to measure on, in whole rows; all there are where the text is shorter."""
    calibration_seq_len: Annotated[Count, Field(ge=2)] = 2048
    """Tokens a row, at most the model's context; a token store has rows of its own."""
    calibration_column: Annotated[str, Field(min_length=1)] = "text"
    """Column (or JSON key) that holds the text."""
    batch_tokens: AtLeastOne = 8192
    """Tokens run through the model at once, at least a row: a matter of memory."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights while measuring: float32 on the CPU and the checkpoint's own elsewhere, unless named."""
    device: str | None = None
    """`cpu`, `cuda:1`, ...; the accelerator when there is one, else the CPU."""


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Rows of token ids [n, S], int64."""

    rows: NDArray[np.int64]
    source: str
    fingerprint: dict[str, Any]

    def batches(self, batch_tokens: int) -> Iterator[Tensor]:
        """The rows in order, ids [B, S] of at most `batch_tokens` tokens, at least a row."""
        step = max(1, batch_tokens // self.rows.shape[1])
        for start in range(0, len(self.rows), step):
            yield torch.from_numpy(np.ascontiguousarray(self.rows[start : start + step]))

    @property
    def num_predicted(self) -> int:
        """Tokens that have others before them in their row."""
        return int(self.rows.size - len(self.rows))

    def to_dict(self) -> dict[str, Any]:
        """What prune.json says of the text; `tokens_sha256` is of the ids, little-endian int64, row after row."""
        return {
            "source": self.source,
            "fingerprint": self.fingerprint,
            "rows": self.rows.shape[0],
            "seq_len": self.rows.shape[1],
            "tokens": self.rows.size,
            "tokens_sha256": hashlib.sha256(self.rows.astype("<i8").tobytes()).hexdigest(),
        }


def calibration_fingerprint(source: str | None) -> dict[str, Any] | None:
    """What identifies the text before it is read: the input of a manifest. None without a source."""
    return None if source is None else text_fingerprint(source)


def load_calibration(config: CalibrationConfig, folder: Path) -> Calibration:
    """At most `calibration_tokens` of the text as the model in `folder` reads it.

    Documents are packed without gaps, EOS after each. A token store gives the training rows that a run with seed 0
    reads first; its held-out rows stay unseen.

    Raises:
        UsageError: no source is named.
        InputError: the source cannot be used, holds too little text, or is a store of another tokenizer or with rows
            longer than the model's context.
    """
    source = config.calibration
    if source is None:
        raise UsageError(
            "Measuring layers needs text: name it with --calibration SOURCE (in a recipe prune.calibration): "
            "hub:ORG/NAME[:CONFIG], a local file, folder or glob, or a token store."
        )
    tokenizer = load_tokenizer(folder)
    limit = getattr(load_config(folder).get_text_config(), "max_position_embeddings", None)
    limit = limit if isinstance(limit, int) and limit > 1 else None
    if (Path(source) / INDEX).is_file():
        rows = _stored_rows(TokenStore.open(source), tokenizer_fingerprint(tokenizer), config, limit)
    else:
        ids, _ = read_start(source, tokenizer, config.calibration_tokens, config.calibration_column)
        length = min(config.calibration_seq_len, limit or config.calibration_seq_len, len(ids))
        count = max(1, min(len(ids), config.calibration_tokens) // length)
        rows = ids[: count * length].reshape(count, length)
    return Calibration(rows, source, text_fingerprint(source))


def _stored_rows(
    store: TokenStore, tokenizer_sha256: str, config: CalibrationConfig, limit: int | None
) -> NDArray[np.int64]:
    if store.tokenizer_sha256 != tokenizer_sha256:
        raise InputError(
            f"The token store {store.path} was made with another tokenizer than the model has. Prepare the text with "
            "this model's tokenizer, or give the raw text."
        )
    if limit is not None and store.seq_len > limit:
        raise InputError(
            f"The rows of {store.path} have {store.seq_len} tokens, and the model reads at most {limit}. Give the raw "
            "text, or a store of shorter rows."
        )
    count = min(max(1, config.calibration_tokens // store.seq_len), store.num_rows)
    return store.batch(0, count, seed=0)
