"""The record of a step: what was asked, what went in and what came out, and where it was made.

The manifest is part of what the rename of a finished folder makes visible. No manifest, no result.
"""

from collections.abc import Mapping
from typing import Any

from compress.base.currency import plain
from compress.base.machine import environment, peak_memory_gib


def manifest(
    *,
    config: Mapping[str, Any],
    inputs: Mapping[str, Any],
    outputs: Mapping[str, str],
    seconds: float,
    **extra: Any,
) -> dict[str, Any]:
    """The record of one step: what was asked, what went in (hashes), what came out (SHA-256 by file), and where.

    `inputs` maps a role (`teacher`, `data`) to a fingerprint. `compress.base.currency` compares them.
    """
    return {
        "config": plain(dict(config)),
        "inputs": plain(dict(inputs)),
        "outputs": dict(outputs),
        "seconds": round(seconds, 3),
        "peak_gib": round(peak_memory_gib(), 3),
        **environment(),
        **extra,
    }
