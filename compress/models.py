"""Model folders: found or downloaded, checked, loaded safely and strictly.

Nothing here runs code from a model folder, reads a pickle, or accepts a checkpoint that does not fill the model
exactly.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from compress.artifacts import read_json, sha256_file, write_json
from compress.errors import InputError

_SIDE_FILES = (
    "tokenizer*", "vocab*", "merges*", "special_tokens*", "added_tokens*", "spiece*", "*.model", "*.spm", "*.tiktoken",
    "*.jinja", "chat_template*", "additional_chat_templates/*.jinja", "generation_config.json",
    "preprocessor_config.json", "processor_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
_NEVER_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".py")
_EOS_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")
WEIGHT_FILES = "*.safetensors"
_HUB_FILES = ("*.json", WEIGHT_FILES, *_SIDE_FILES)


def resolve_model(name: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """Folder of a model: a local folder as it is, or a hub id downloaded (safetensors, configs, tokenizer only).

    With `weights=False` only the JSON files of a hub model are fetched: enough to plan.

    Raises:
        InputError: no such folder, no config.json in it, or the hub refused; the message says what to do.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"{name} is not a model folder: it has no config.json.")
        return path
    if path.is_absolute() or name.startswith(".") or name.count("/") > 1 or path.exists():
        raise InputError(f"The model folder {name} does not exist.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=list(_HUB_FILES) if weights else ["*.json"])
        )
    except GatedRepoError as error:
        raise InputError(
            f"{name} is gated on the Hugging Face hub: accept its licence on its page there, then `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(f"{name} is neither a local folder nor a model on the Hugging Face hub.") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InputError(
            f"{name} is not a local folder, and it could not be fetched from the Hugging Face hub "
            f"({' '.join(str(error).split())[:200]}). Check the name and the network, or give a local folder."
        ) from error


def load_config(folder: Path) -> Any:
    """The model's `PretrainedConfig`.

    Raises:
        InputError: config.json is missing, broken, of an unknown type, or asks for code of its own.
    """
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise InputError(f"{folder / 'config.json'} cannot be used: {_reason(error)}.") from error


def config_from(content: Mapping[str, Any]) -> Any:
    """The `PretrainedConfig` that a config.json of this content is loaded as.

    Raises:
        InputError: no model can have it.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "config.json", content)
        try:
            return AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:
            raise InputError(f"A config.json with these fields cannot be used: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    """Why transformers could not use a folder; its advice to trust the folder's code is not ours."""
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return "it needs code of its own, which this tool never runs"
    return text[:400].rstrip(".")


def load_tokenizer(folder: Path) -> Any:
    """The model's tokenizer. A bare tokenizer.json names no EOS token: then the usual names are looked for.

    Raises:
        InputError: the folder holds no usable tokenizer.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if tokenizer.eos_token is None:
            tokenizer.eos_token = next((name for name in _EOS_NAMES if name in tokenizer.get_vocab()), None)
        return tokenizer
    except Exception as error:
        raise InputError(
            f"{folder} has no usable tokenizer ({_reason(error)}). Copy tokenizer.json and "
            "tokenizer_config.json of the original model into it."
        ) from error


def load_model(folder: Path, *, dtype: torch.dtype, device: torch.device | str = "cpu", **kwargs: Any) -> Any:
    """A causal LM in evaluation mode, loaded from safetensors only; every key must match.

    Further `kwargs` go to `from_pretrained` (`attn_implementation`).

    Raises:
        InputError: a shard is missing, truncated or corrupt, escapes the folder or differs from what one of our steps
            recorded, or a key is missing, unexpected or of another shape; the message names the file or the keys.
    """
    _check_recorded(folder, check_weight_files(folder))
    try:
        with no_transformers_bars():
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # transformers' own error names no key; ours, below, does
                output_loading_info=True,
                **kwargs,
            )
    except Exception as error:
        raise InputError(f"{folder} cannot be loaded ({type(error).__name__}: {_reason(error)}).") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if found := sorted(map(str, info.get(kind) or [])):
            raise InputError(
                f"{folder} does not fill its model: {kind.replace('_', ' ')} {', '.join(found[:5])}"
                f"{' ...' if len(found) > 5 else ''}. The checkpoint and its config.json do not belong together."
            )
    return model.to(device).eval()


def find_dtype(name: str, folder: Path, device: torch.device) -> torch.dtype:
    """The dtype of that name; `auto` is float32 on the CPU and the checkpoint's own on an accelerator."""
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type == "cpu":
        return torch.float32
    stored = getattr(load_config(folder), "dtype", None)
    return stored if isinstance(stored, torch.dtype) else torch.float32


@contextmanager
def no_transformers_bars() -> Iterator[None]:
    """Keep transformers' own bars for loading and writing weights off the user's screen."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def check_weight_files(folder: Path) -> list[Path]:
    """The safetensors shards of a model folder, after checking that each is whole and lies inside it.

    Symbolic links may lead out of the folder only as the hub cache's do (into its `blobs/`).

    Raises:
        InputError: no weights, only pickles, a shard named outside the folder, or one that is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = read_json(index)
        weight_map = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{index} is no shard index: it has no weight_map. Download it again.")
        names = sorted(set(map(str, weight_map.values())))
    elif (folder / "model.safetensors").is_file():
        names = ["model.safetensors"]
    else:
        pickles = [p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth"))]
        hint = f" It has {pickles[0]}, a pickle, which can run code: convert it to safetensors." if pickles else ""
        raise InputError(f"{folder} has no model.safetensors.{hint}")
    shards = []
    for name in names:
        path = folder / name
        if os.path.basename(name) != name or "\\" in name or ":" in name:
            raise InputError(f"{index} names the shard {name!r}, which is not a plain file name inside the folder.")
        if not path.is_file():
            raise InputError(f"{path} is missing, though {index.name} names it. Download the model again.")
        _require_inside(path, folder)
        try:
            with safe_open(path, framework="pt") as file:
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


def _check_recorded(folder: Path, shards: list[Path]) -> None:
    """Compare weights that one of our steps wrote with the SHA-256 it recorded beside them."""
    for name in ("prune.json", "distill.json"):
        if not (folder / name).is_file():
            continue
        record = read_json(folder / name)
        manifest = record.get("manifest") if isinstance(record, dict) else None
        recorded = (manifest.get("outputs") if isinstance(manifest, dict) else None) or {}
        for path in shards:
            if path.name in recorded and sha256_file(path) != recorded[path.name]:
                raise InputError(
                    f"{path} does not match its SHA-256 in {name}: it is damaged, or was changed after it was written. "
                    f"Make it again, or remove {name} if the change is meant."
                )


def side_files(folder: Path) -> list[Path]:
    """Files of a model folder besides config and weights: tokenizer, chat templates, generation config, licence.

    Neither weights nor code, whatever their names.
    """
    found = {path for pattern in _SIDE_FILES for path in folder.glob(pattern)}
    return sorted(path for path in found if path.is_file() and path.suffix not in _NEVER_COPIED)


def copy_side_files(folder: Path, out: Path) -> None:
    """Copy the `side_files` of `folder` to `out` byte for byte, over what is there."""
    for source in side_files(folder):
        target = out / source.relative_to(folder)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)


def model_fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that makes the model what it is: config, weights, tokenizer, generation config."""
    names = {"config.json", "generation_config.json", "chat_template.jinja", "model.safetensors.index.json"}
    files = [p for p in sorted(folder.iterdir()) if p.is_file()]
    chosen = [
        p
        for p in files
        if p.name in names
        or p.suffix == ".safetensors"
        or p.name.startswith(("token", "vocab", "merges", "special", "spiece"))
    ]
    return {path.name: _content_hash(path) for path in chosen}


def _content_hash(path: Path) -> str:
    """SHA-256 of the content; the hub's cache names a large file's blob by that very hash."""
    blob = path.resolve().name
    if path.is_symlink() and len(blob) == 64 and path.resolve().parent.name == "blobs":
        return blob
    return sha256_file(path)
