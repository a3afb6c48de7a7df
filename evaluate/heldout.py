"""Held-out rows of tokens, from a token store or from raw text."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.evaluate.checkpoint import Checkpoint
from compress.evaluate.config import EvalConfig


@dataclasses.dataclass(frozen=True)
class Heldout:
    """Rows of token ids [n, S], int64."""

    rows: NDArray[np.int64]


def load_heldout(text: str | Path, checkpoint: Checkpoint, config: EvalConfig) -> Heldout:
    raise NotImplementedError


def text_fingerprint(text: str | Path) -> Any:
    raise NotImplementedError
