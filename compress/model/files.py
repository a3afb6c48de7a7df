"""Model folders as files: found or downloaded, their shards checked, their side files copied, their content hashed.

Nothing here imports torch or transformers, so it answers at once; `compress.model.load` loads what is found.
"""

import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from compress.base.currency import Missing
from compress.base.disk import read_json, sha256_file
from compress.base.errors import InputError, reason_of
from compress.model.gguf import gguf_hash, gguf_model, is_gguf, known_gguf_model
from compress.model.remote_code import trusted

_SIDE_FILES = (
    "tokenizer*", "vocab*", "merges*", "special_tokens*", "added_tokens*", "spiece*", "*.model", "*.spm", "*.tiktoken",
    "*.jinja", "chat_template*", "additional_chat_templates/*.jinja", "generation_config.json",
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
    "LICENSE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
_NEVER_COPIED = (".safetensors", ".bin", ".pt", ".pth")
_CODE = "*.py"
_OTHER_WEIGHTS = "transformers_weights"  # transformers loads what this field of config.json names
WEIGHT_FILES = "*.safetensors"
SMALL_FILES = ("*.json", *_SIDE_FILES)
"""What a hub model has besides its weights."""
_HUB_FILES = (*SMALL_FILES, WEIGHT_FILES)
_HASHING_THREADS = min(4, os.cpu_count() or 1)


def resolve_model(name: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """Folder of a model: a local folder as it is, a GGUF file converted (see `gguf_model`), or a hub id downloaded:
    safetensors, configs and tokenizer only, and code where it is trusted.

    With `weights=False` only the JSON files (and trusted code) of a hub model are fetched: enough to plan.

    Raises:
        InputError: no such folder or file, no config.json in it, or the hub refused; the message says what to do.
        UsageError: as `gguf_model`.
    """
    folder = local_folder(name)
    return folder or download(name, revision, _HUB_FILES if weights else ("*.json",))


def local_folder(name: str) -> Path | None:
    """The model folder of that name, or of the GGUF file of that name; None for what can only be a hub id.

    Raises:
        InputError: no such folder, or no config.json in it; and as `gguf_model`.
    """
    path = Path(name).expanduser()
    if is_gguf(path) and not path.is_dir():
        return gguf_model(path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            named = next((f" Name the file itself: {file}." for file in sorted(path.glob("*.gguf"))), "")
            raise InputError(f"{name} is not a model folder: it has no config.json.{named}")
        return path
    if path.is_absolute() or name.startswith(".") or name.count("/") > 1 or path.exists():
        raise InputError(f"The model folder {name} does not exist.")
    return None


def download(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Snapshot folder of a hub model's files that match one of the `patterns`, and of trusted code, in the hub's cache.

    Raises:
        InputError: as `hub_errors`.
    """
    from huggingface_hub import snapshot_download

    wanted = [*patterns, _CODE] if trusted() else list(patterns)
    with hub_errors(name):
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))


def local_model(name: str, revision: str | None) -> Path:
    """Folder of a model on this machine: a folder, a GGUF file that was converted, or a hub model in the cache. No
    network.

    Raises:
        Missing: none of them, or the cache has no weights of it.
    """
    folder = Path(name).expanduser()
    if is_gguf(folder) and not folder.is_dir():
        return known_gguf_model(folder)
    if (folder / "config.json").is_file():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        raise Missing(f"{name} is no folder here, and the hub's cache does not have it") from None
    if not list(folder.glob(WEIGHT_FILES)):
        raise Missing(f"the hub's cache has no weights of {name}")
    return folder


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turn what the hub's client raises about the model `name` into an InputError that says what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise InputError(
            f"{name} is gated on the Hugging Face hub: accept its licence on its page there, then `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(f"{name} is neither a local folder nor a model on the Hugging Face hub.") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InputError(
            f"{name} is not a local folder, and it could not be fetched from the Hugging Face hub "
            f"({reason_of(error)}). Check the name and the network, or give a local folder."
        ) from error


def shard_names(folder: Path) -> list[str]:
    """Names of a model folder's safetensors files: those that transformers loads, which takes an index only where there
    is no file of the usual name. The files are not looked at.

    Raises:
        InputError: the index is broken, or has a name that is not a plain file name.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return ["model.safetensors"]
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} is no shard index: it has no weight_map. Download it again.")
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        if os.path.basename(name) != name or "\\" in name or ":" in name or name in ("", ".", ".."):
            raise InputError(f"{index} names the shard {name!r}, which is not a plain file name inside the folder.")
    return names


def check_weight_files(folder: Path) -> list[Path]:
    """The safetensors shards of a model folder, after checking that each is whole and lies inside it.

    Symbolic links may lead out of the folder only as the hub cache's do (into its `blobs/`).

    Raises:
        InputError: no weights, only pickles, a config.json that names other files, a shard named outside the folder, or
            one that is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    config = folder / "config.json"
    content = read_json(config) if config.is_file() else None
    if isinstance(content, dict) and (named := content.get(_OTHER_WEIGHTS)):
        raise InputError(
            f"{config} has {_OTHER_WEIGHTS}: {named!r}, which would load other weights than model.safetensors. Remove "
            "the field, and give the file that name."
        )
    if not index.is_file() and not (folder / "model.safetensors").is_file():
        pickles = [p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth"))]
        hint = f" It has {pickles[0]}, a pickle, which can run code: convert it to safetensors." if pickles else ""
        raise InputError(f"{folder} has no model.safetensors.{hint}")
    shards = []
    for name in shard_names(folder):
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path} is missing, though {index.name} names it. Download the model again.")
        _require_inside(path, folder)
        try:
            with safe_open(path, framework="np") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path} is not a whole safetensors file ({error}). It is truncated or corrupt: download it again."
            ) from error
        shards.append(path)
    return shards


def _require_inside(path: Path, folder: Path) -> None:
    """Refuse a link that leads anywhere but into the folder or, from the hub cache's snapshots, into its blobs."""
    target, home = path.resolve(), folder.resolve()
    blobs = home.parent.parent / "blobs"
    if not target.is_relative_to(home) and not (home.parent.name == "snapshots" and target.parent == blobs):
        raise InputError(f"{path} is a link to {target}, outside the model folder. Put the file itself there.")


def side_files(folder: Path) -> list[Path]:
    """Files of a model folder besides config and weights: tokenizer, chat templates, generation config, licence.

    Never weights, whatever their names, and code only where it is trusted.
    """
    found = {path for pattern in _SIDE_FILES for path in folder.glob(pattern) if path.suffix != ".py"}
    named = [path for path in found if path.is_file() and path.suffix not in _NEVER_COPIED]
    return sorted([*named, *code_files(folder)])


def code_files(folder: Path) -> list[Path]:
    """The code that a trusted model brings: what transformers may import lies beside its config.json."""
    return sorted(folder.glob(_CODE)) if trusted() else []


def copy_side_files(folder: Path, out: Path) -> None:
    """Copy the `side_files` of `folder` to `out` byte for byte, over what is there."""
    for source in side_files(folder):
        target = out / source.relative_to(folder)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)


def model_fingerprint(folder: Path, *, weights: bool = True, stop: threading.Event | None = None) -> dict[str, str]:
    """SHA-256 of each file that makes the model what it is: config, weights, tokenizer, generation config, and code
    where it is trusted. A model from a GGUF file is what that file is: the same for every version of transformers.

    `stop` ends it early, as it does `sha256_file`.
    """
    if (gguf := gguf_hash(folder)) is not None:
        return {"model.gguf": gguf}
    names = {"config.json", "generation_config.json", "chat_template.jinja", "model.safetensors.index.json"}
    files = [p for p in sorted(folder.iterdir()) if p.is_file()]
    code = code_files(folder)
    chosen = [
        p
        for p in files
        if p.name in names
        or (weights and p.suffix == ".safetensors")
        or p.name.startswith(("token", "vocab", "merges", "special", "spiece"))
        or p in code
    ]
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        return dict(
            zip([path.name for path in chosen], pool.map(lambda path: _content_hash(path, stop), chosen), strict=True)
        )


def _content_hash(path: Path, stop: threading.Event | None) -> str:
    """SHA-256 of the content; the hub's cache names a large file's blob by that very hash."""
    blob = path.resolve().name
    if path.is_symlink() and len(blob) == 64 and path.resolve().parent.name == "blobs":
        return blob
    return sha256_file(path, stop)
