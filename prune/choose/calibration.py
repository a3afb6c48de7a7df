"""The text that layer importance is measured on, as rows of token ids."""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.base.errors import UsageError
from compress.data import INDEX, TokenStore, check_framing, framing_for, text_fingerprint, text_rows
from compress.model.lengths import context_tokens, fit
from compress.model.load import load_config, load_tokenizer
from compress.model.vocabulary import check_ids, check_store
from compress.prune.parts import Amount, CalibrationConfig


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


def calibration_fingerprint(source: str | None, column: str = "text") -> dict[str, Any] | None:
    """What identifies the text before it is read: the input of a manifest. None without a source."""
    return None if source is None else text_fingerprint(source, column)


def require_source(source: str | None) -> str:
    """The text to measure on.

    Raises:
        UsageError: none is named.
    """
    if source is None:
        raise UsageError(
            "Measuring layers needs text: name it with --calibration SOURCE (in a recipe prune.calibration): "
            "hub:ORG/NAME[:CONFIG], a local file, folder or glob, or a token store."
        )
    return source


def load_calibration(config: CalibrationConfig, folder: Path, amount: Amount) -> Calibration:
    """At most that `amount` of the text as the model in `folder` reads it, framed as it reads it best.

    Of a raw text there is one row a document while there are enough. A token store gives the training rows that a run
    with seed 0 reads first; its held-out rows stay unseen.

    Raises:
        UsageError: no source is named.
        InputError: the source cannot be used, holds too little text, or is a store of another tokenizer, framed for
            another model, or with rows longer than the model's context.
    """
    source = require_source(config.calibration)
    tokenizer = load_tokenizer(folder)
    model = load_config(folder)
    limit = context_tokens(model)
    if (Path(source) / INDEX).is_file():
        store = TokenStore.open(source)
        check_store(store, tokenizer, str(folder), context=limit)
        if store.pictured:
            raise UsageError(
                f"{source} has rows with images, and what is measured or repaired in a cut is so on text alone: name "
                "text with --calibration SOURCE (in a recipe prune.calibration)."
            )
        check_framing(store, folder)
        rows = store.batch(0, min(max(1, amount.tokens // store.seq_len), store.num_rows), seed=0)
    else:
        length = fit("Calibration rows", amount.seq_len, 0, limit)[0]
        count, column = max(1, amount.tokens // length), config.calibration_column
        framing = framing_for(source, column, folder)
        rows = text_rows(source, tokenizer, count, length, column, framing=framing).ids.astype(np.int64)
    check_ids(rows, model.get_text_config().vocab_size, tokenizer, str(folder))
    return Calibration(rows, source, text_fingerprint(source, config.calibration_column))
