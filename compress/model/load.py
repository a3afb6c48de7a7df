"""Models loaded safely and strictly from their folders, which `compress.model.files` finds and checks.

Nothing here runs code from a model folder (unless `compress.model.remote_code` was told to), reads a pickle, or accepts
a checkpoint that does not fill the model exactly.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging

from compress.base.disk import read_json, sha256_file, write_json
from compress.base.errors import InputError, reason_of
from compress.base.machine import computes_in_bf16
from compress.base.progress import working
from compress.base.units import format_bytes
from compress.model.files import check_weight_files, code_files
from compress.model.gguf import GGUF_RECORD
from compress.model.kinds import kind_of, model_class
from compress.model.remote_code import trusted

_PRETRAINING = re.compile(r"(^|\.)(pooler|seq_relationship|position_ids)(\.|$)")
"""Weights of a masked language model's checkpoint that it was pretrained with, and that fill no blank."""
_EOS_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")


def load_config(folder: Path) -> Any:
    """The model's `PretrainedConfig`.

    Raises:
        InputError: config.json is missing, broken, of an unknown type, or asks for code of its own.
    """
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trusted())
    except Exception as error:
        raise InputError(f"{folder / 'config.json'} cannot be used: {why_not_loaded(error)}.") from error


def config_from(content: Mapping[str, Any], home: Path) -> Any:
    """The `PretrainedConfig` that a config.json of this content is loaded as; trusted code of its own is in `home`.

    Raises:
        InputError: no model can have it.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "config.json", content)
        for path in code_files(home):
            shutil.copyfile(path, Path(folder) / path.name)
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trusted())
        except Exception as error:
            raise InputError(f"A config.json with these fields cannot be used: {why_not_loaded(error)}.") from error
    config.name_or_path = str(home)
    return config


def why_not_loaded(error: Exception) -> str:
    """Why transformers could not use a folder; its advice to trust the folder's code is not ours."""
    if "trust_remote_code" in str(error):
        return (
            "it needs code of its own, which this tool does not run unless you have read it and say so "
            "(--trust-remote-code; in a recipe, teacher.trust_remote_code: true)"
        )
    return reason_of(error)


def load_tokenizer(folder: Path) -> Any:
    """The model's tokenizer. A bare tokenizer.json names no EOS token: then the usual names are looked for. Those of
    encoders have none: what ends a document is their separator.

    Raises:
        InputError: the folder holds no usable tokenizer.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted())
        if tokenizer.eos_token is None:
            found = next((name for name in _EOS_NAMES if name in tokenizer.get_vocab()), None)
            tokenizer.eos_token = found or tokenizer.sep_token
        return tokenizer
    except Exception as error:
        raise InputError(
            f"{folder} has no usable tokenizer ({why_not_loaded(error)}). Copy tokenizer.json and "
            "tokenizer_config.json of the original model into it."
        ) from error


def load_model(folder: Path, *, dtype: torch.dtype, device: torch.device | str = "cpu", **kwargs: Any) -> Any:
    """A causal or masked LM in evaluation mode, loaded from safetensors only; every key must match.

    Further `kwargs` go to `from_pretrained` (`attn_implementation`). A model with 4-bit weights (`compress export`) has
    the dtype that these were made in, whatever `dtype` says. A masked one may have weights beside it that it was
    pretrained with (a pooler, a head for the next sentence).

    Raises:
        InputError: a shard is missing, truncated or corrupt, escapes the folder or differs from what one of our steps
            recorded, or a key is missing, unexpected or of another shape; the message names the file or the keys.
    """
    shards = check_weight_files(folder)
    _check_recorded(folder, shards)
    size = format_bytes(sum(shard.stat().st_size for shard in shards))
    config = kwargs.pop("config", None) or load_config(folder)
    kind, auto_class = kind_of(config), model_class(config)
    try:
        with no_transformers_bars(), working(f"loading {folder}, {size}"):
            model, info = auto_class.from_pretrained(
                folder,
                config=config,
                dtype=_computing_dtype(folder, dtype),
                use_safetensors=True,
                trust_remote_code=trusted(),
                ignore_mismatched_sizes=True,  # transformers' own error names no key; ours, below, does
                output_loading_info=True,
                **kwargs,
            )
    except Exception as error:
        raise InputError(f"{folder} cannot be loaded ({type(error).__name__}: {why_not_loaded(error)}).") from error
    if kind == "masked":
        info["unexpected_keys"] = [key for key in info["unexpected_keys"] if not _PRETRAINING.search(key)]
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if found := sorted(map(str, info.get(fault) or [])):
            raise InputError(
                f"{folder} does not fill its model: {fault.replace('_', ' ')} {', '.join(found[:5])}"
                f"{' ...' if len(found) > 5 else ''}. The checkpoint and its config.json do not belong together."
            )
    return model.to(device).eval()


def find_dtype(name: str, folder: Path, device: torch.device, *, quick: bool = False) -> torch.dtype:
    """The dtype of that name; `auto` is float32 on the CPU and the checkpoint's own on an accelerator.

    `quick` lets a checkpoint in bf16 be that on the CPU as well, where the processor computes in it.
    """
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type == "cpu" and not (quick and computes_in_bf16()):
        return torch.float32
    stored = getattr(load_config(folder), "dtype", None)
    if device.type == "cpu" and stored != torch.bfloat16:
        return torch.float32
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


def _computing_dtype(folder: Path, dtype: torch.dtype) -> torch.dtype:
    """The dtype to load a model in: torchao's weights of a few bits compute in the one that they were made in alone."""
    content = read_json(folder / "config.json")
    how = content.get("quantization_config") if isinstance(content, dict) else None
    kind = how.get("quant_type") if isinstance(how, dict) else None
    few = isinstance(kind, dict) and kind.get("default", {}).get("_type") == "IntxWeightOnlyConfig"
    return getattr(torch, content["dtype"]) if few else dtype


def _check_recorded(folder: Path, shards: list[Path]) -> None:
    """Compare weights that one of our steps wrote with the SHA-256 it recorded beside them."""
    for name in ("prune.json", "grow.json", "trim.json", "distill.json", "export.json", "merge.json", GGUF_RECORD):
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
