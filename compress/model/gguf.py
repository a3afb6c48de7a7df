"""GGUF files as models: found by their content among those that were converted into ordinary model folders.

A file is converted once, into `$HF_HOME/compress/gguf/SHA256`, by the SHA-256 of its content; there it is found again
under whatever name. What was made from the folder remembers the file's hash (see `model_fingerprint`).
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compress.base.currency import Missing
from compress.base.disk import read_json, sha256_file
from compress.base.errors import InputError
from compress.base.outputs import has_manifest, read_object
from compress.base.progress import say_once

GGUF_RECORD = "from_gguf.json"
"""In a converted folder: the file that it was made from, and the SHA-256 of what was made."""


def is_gguf(name: str | Path) -> bool:
    """Whether a model of that name is a GGUF file."""
    return Path(name).suffix.lower() == ".gguf"


def gguf_model(path: Path) -> Path:
    """Folder of the model in a GGUF file, converted when it is not yet; says what its weights are.

    Raises:
        InputError: there is no such file, it is damaged or one of several, or transformers cannot read it.
        UsageError: the disk has no room for it.
    """
    if not path.is_file():
        raise InputError(f"The model file {path} does not exist.")
    out = _place(path)
    if not (out / GGUF_RECORD).is_file():
        from compress.model.gguf_conversion import convert

        out.parent.mkdir(parents=True, exist_ok=True)
        with _alone(out):
            if not (out / GGUF_RECORD).is_file():
                convert(path, out)
    say_once(f"{path.name}: {read_json(out / GGUF_RECORD)['weights']} ({out})")
    return out


def known_gguf_model(path: Path) -> Path:
    """`gguf_model` without a conversion.

    Raises:
        Missing: the file is not here, or was not converted here.
    """
    if not path.is_file():
        raise Missing(f"the model file {path} is not here")
    out = _place(path)
    if not (out / GGUF_RECORD).is_file():
        raise Missing(f"{path} is not converted: {out} is not there")
    return out


def gguf_hash(folder: Path) -> str | None:
    """SHA-256 of the GGUF file that a folder was converted from; None for every other folder."""
    record = folder / GGUF_RECORD
    return read_object(record)["manifest"]["inputs"].get("gguf") if has_manifest("weights")(record) else None


def _place(path: Path) -> Path:
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "compress" / "gguf" / sha256_file(path)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Let processes that want the same folder make it one after another."""
    with out.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
