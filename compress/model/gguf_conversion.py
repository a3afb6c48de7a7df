"""A GGUF file made an ordinary model folder: read by transformers in float32, rounded to the dtype that is stored."""

import copy
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.base.disk import sha256_tree, staged_folder, write_json
from compress.base.errors import InputError, UsageError, reason_of
from compress.base.progress import say
from compress.base.records import manifest
from compress.base.units import format_bytes
from compress.model.gguf import GGUF_RECORD
from compress.model.gguf_header import GgufHeader, read_header
from compress.model.load import no_transformers_bars
from compress.model.parts import empty_model

_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_ORIGINAL = "Use the original model's folder or hub id"


def convert(path: Path, out: Path, dtype: str | None = None) -> None:
    """Write the folder `out`, whose name is the file's SHA-256, with all that a model folder has and a record. The
    weights are stored as `dtype`, or by default as `_stored_dtype` says.

    Raises:
        InputError: the file is damaged, or not the whole of a model that transformers reads as what it is.
        UsageError: the disk has no room for the folder.
    """
    started, header = time.monotonic(), read_header(path)
    _check_complete(path, header)
    dtype = dtype or _stored_dtype(header)
    needed, free = header.numbers * _BYTES[dtype], shutil.disk_usage(out.parent).free
    if needed > free:
        raise UsageError(
            f"{path} takes {format_bytes(needed)} as {dtype}, and the disk of {out.parent} has {format_bytes(free)} "
            "free: free some, or set HF_HOME to a folder on another disk."
        )
    say(f"{path.name}: converting it into {out}, once ...")
    with staged_folder(out) as partial:
        _save(path, header, dtype, partial)
        made = manifest(
            config={"dtype": dtype},
            inputs={"gguf": out.name},
            outputs=sha256_tree(partial),
            seconds=time.monotonic() - started,
        )
        record = {"file": path.name, "bytes": path.stat().st_size, "weights": _weights(header, dtype)}
        write_json(partial / GGUF_RECORD, {**record, "manifest": made})


def _check_complete(path: Path, header: GgufHeader) -> None:
    """Refuse a file that is no whole model, and one that transformers would read as another model.

    Raises:
        InputError: it is one of several parts, or has no tokenizer, or scales positions as transformers does not read.
    """
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", path.name) or header.fields.get("split.count", 1) not in (0, 1):
        raise InputError(
            f"{path} is one part of a model in several files. Join them with llama.cpp's "
            "`llama-gguf-split --merge FIRST_PART WHOLE.gguf`, and name the whole."
        )
    if "general.architecture" not in header.fields or not header.tensors:
        raise InputError(f"{path} holds no model: it names no architecture, or has no tensors. {_ORIGINAL}.")
    if not header.fields.get("tokenizer.ggml.tokens"):
        raise InputError(f"{path} has no tokenizer (tokenizer.ggml.tokens). Take a file that has, or the original.")
    if scaled := [tensor.name for tensor in header.tensors if tensor.name.startswith("rope_f")]:
        raise InputError(
            f"{path} scales its positions by tensors ({', '.join(scaled)}), as Llama 3.1 does, which transformers does "
            f"not read: it would be another model. {_ORIGINAL}."
        )


def _stored_dtype(header: GgufHeader) -> str:
    """The dtype to store: the file's own where it is one of floats, however small its norms' share; else bfloat16."""
    types = {tensor.type for tensor in header.tensors}
    narrow = types - {"F32"} or {"F32"}
    return _FLOATS.get(next(iter(narrow)), "bfloat16") if len(narrow) == 1 else "bfloat16"


def _weights(header: GgufHeader, dtype: str) -> str:
    """What the matrices are stored as, for people."""
    matrices = sorted({(tensor.bits, tensor.type) for tensor in header.tensors if len(tensor.shape) > 1})
    types = ", ".join(name for _, name in matrices)
    if all(name in _FLOATS for _, name in matrices):
        return f"weights in {types}, kept as {dtype}"
    least, most = int(matrices[0][0]), int(matrices[-1][0])
    bits = f"{least}" if least == most else f"{least} to {most}"
    return f"weights of {bits} bits ({types}), dequantised to {dtype}; scores are the quantised model's"


def _save(path: Path, header: GgufHeader, dtype: str, out: Path) -> None:
    """Write what transformers reads of the file, its float32 rounded to `dtype`, as a model folder."""
    with no_transformers_bars():
        read, tokenizer = read_gguf(path)
        _check_positions(path, header, read.config)
        config = copy.deepcopy(read.config)
        config.dtype, config.name_or_path = getattr(torch, dtype), ""
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = empty_model(config)
        model.load_state_dict(read.to(config.dtype).state_dict(), assign=True)
        model.tie_weights()
        model.generation_config = read.generation_config
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)


def read_gguf(path: Path) -> tuple[Any, Any]:
    """The model in float32, and its tokenizer, from the file alone: what lies beside it is not looked at.

    Raises:
        InputError: transformers does not know the architecture or a type of weights, or finds the model incomplete.
    """
    whole = {}
    if hasattr(transformers, "GgufConfig"):  # versions that can keep weights quantised have to be told not to
        whole["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "model.gguf").symlink_to(path.absolute())
        try:
            tokenizer = AutoTokenizer.from_pretrained(home, gguf_file="model.gguf", trust_remote_code=False)
            model, info = AutoModelForCausalLM.from_pretrained(
                home,
                gguf_file="model.gguf",
                dtype=torch.float32,
                trust_remote_code=False,
                output_loading_info=True,
                **whole,
            )
        except Exception as error:
            raise InputError(f"transformers cannot read {path} ({reason_of(error)}). {_ORIGINAL}.") from error
    if lacking := sorted(map(str, info["missing_keys"])):
        raise InputError(
            f"{path} does not fill its model: it lacks {', '.join(lacking[:5])}{' ...' if lacking[5:] else ''}. "
            f"{_ORIGINAL}."
        )
    return model, tokenizer


def _check_positions(path: Path, header: GgufHeader, config: Any) -> None:
    """Refuse a file whose scaling of positions did not reach the model's config.

    Raises:
        InputError: the file names a scaling, and the config has none.
    """
    named = header.fields.get(f"{header.fields['general.architecture']}.rope.scaling.type", "none")
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {part.get("rope_type", "default") for part in (rope, *rope.values()) if isinstance(part, dict)}
    if named != "none" and kinds <= {"default"}:
        raise InputError(
            f"{path} scales its positions ({named}), which transformers does not read: it would be another model. "
            f"{_ORIGINAL}."
        )
