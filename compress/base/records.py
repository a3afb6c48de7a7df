"""The record of a step: what was asked, what went in and what came out, and whether it still holds.

The manifest is part of what the rename of a finished folder makes visible. No manifest, no result.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.base.disk import sha256_file
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

    `inputs` maps a role (`teacher`, `data`) to a fingerprint. `is_current` compares `config` and `inputs`.
    """
    return {
        "config": dict(config),
        "inputs": dict(inputs),
        "outputs": dict(outputs),
        "seconds": round(seconds, 3),
        "peak_gib": round(peak_memory_gib(), 3),
        **environment(),
        **extra,
    }


def is_current(
    folder: Path, record: Mapping[str, Any], *, config: Mapping[str, Any], inputs: Mapping[str, Any]
) -> bool:
    """Whether a step's manifest `record` was made from this config and these inputs, with its outputs intact."""
    as_written = json.loads(json.dumps([dict(config), dict(inputs)], default=str))
    if [record.get("config"), record.get("inputs")] != as_written:
        return False
    outputs = record.get("outputs") or {}
    return all((folder / name).is_file() and sha256_file(folder / name) == sha for name, sha in outputs.items())
