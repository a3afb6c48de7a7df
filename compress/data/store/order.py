"""The proof of a run's data order: one hash over the ids of all rows read so far, step by step."""

from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

START = ""
"""The hash before the first step."""


def extend(digest: str, row_ids: NDArray[np.int64]) -> str:
    """SHA-256, hex, of the hash so far (its 32 bytes) and one step's row ids [n] as little-endian int64.

    Two runs whose hashes are equal after a step have read the same rows in the same steps up to it.
    """
    return sha256(bytes.fromhex(digest) + row_ids.astype("<i8").tobytes()).hexdigest()
