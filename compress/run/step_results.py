"""What a step left in its folder: made once, found again while its settings, inputs and outputs are what they were."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.base.disk import read_json, sha256_tree, staged_folder, write_json
from compress.base.progress import say
from compress.base.records import is_current, manifest


def make(
    name: str,
    out: Path,
    record: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, Any],
    write: Callable[[Path], None],
) -> None:
    """`write` the folder `out`, with a manifest in its file `record`, unless what is there is current."""
    if is_done(name, out, record, config, inputs):
        return
    started = time.monotonic()
    with staged_folder(out) as partial:
        write(partial)
        outputs = sha256_tree(partial)
        made = manifest(config=config, inputs=inputs, outputs=outputs, seconds=time.monotonic() - started)
        write_json(partial / record, {"manifest": made})


def is_done(
    name: str,
    folder: Path,
    record: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, Any],
    remove: Sequence[Path] | None = None,
) -> bool:
    """Whether a step's result is there and current; one made otherwise is removed (by default its whole folder)."""
    path = folder / record
    if not path.is_file():
        return False
    if is_current(folder, read_json(path)["manifest"], config=config, inputs=inputs):
        say(f"{name}: done, unchanged.")
        return True
    say(f"{name}: its settings or inputs changed; doing it again.")
    for stale in remove or [folder]:
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    return False
