"""`compress trim`: a model and a text in, the model without the ids that the text never uses out, checked or absent."""

import dataclasses
import time
from pathlib import Path
from typing import Any

from compress.base.config import to_dict
from compress.base.disk import read_json, sha256_file, staged_folder, write_json
from compress.base.errors import Faults, InputError
from compress.base.records import manifest
from compress.data import DataConfig
from compress.model.facts import look_at_model
from compress.model.files import WEIGHT_FILES, check_weight_files, copy_side_files, model_fingerprint, resolve_model
from compress.model.load import load_tokenizer
from compress.model.parts import count_parameters
from compress.prune.check import reason_to_skip
from compress.prune.student import load_shapes
from compress.prune.trimming.check import LogitsCheck, compare_logits
from compress.prune.trimming.choice import choose_tokens
from compress.prune.trimming.config import TrimConfig
from compress.prune.trimming.plan import Trimmed, Vocabulary
from compress.prune.trimming.preflight import check_trim, check_trimming
from compress.prune.trimming.record import RECORD, TrimResult, texts_of, trim_inputs
from compress.prune.trimming.text import compare_tokens, count_tokens
from compress.weights.copying import Copying
from compress.weights.room import disk_errors, require_space

_TOKENIZER_FILES = (
    "tokenizer.json", "vocab*", "merges*", "added_tokens*", "spiece*", "*.model", "*.spm", "*.tiktoken",
)  # fmt: skip
"""Files that hold a vocabulary: tokenizer.json alone is written, which transformers reads first."""
_TOKENIZER_CONFIG = "tokenizer_config.json"


def trim(model: str | Path, out: str | Path, config: TrimConfig, run_text: DataConfig | None = None) -> TrimResult:
    """Write to `out` the `model` (a folder or a hub id) with the token ids that a text uses, and their rows of
    embedding and head, byte for byte; every other weight is the model's.

    The text is the one that `config` names, or else `run_text`. Tokenizer, config and generation config have the new
    ids. `out/trim.json` says which old ids stay, 0, 1, 2, ... by their order.

    Raises:
        UsageError: no text is named, `out` is not free, or `keep_tokens` is a number that cannot be.
        InputError: the model cannot be loaded, its tokenizer cannot be rebuilt, or the text cannot be used.
        CompressError: the trimmed tokenizer or model differs from the whole one on what stays, or the disk is full.
            Nothing is left in `out`.
    """
    started, out, name, faults = time.monotonic(), Path(out), str(model), Faults()
    if run_text is None:
        check_trimming(name, out, config, faults)
    elif (known := look_at_model(name, faults)) is not None:
        check_trim(config, known, run_text, faults)
    faults.refuse()
    vocabulary, texts = Vocabulary.of(name, resolve_model(name)), texts_of(config, run_text)
    inputs = {role: find() for role, find in trim_inputs(lambda: model_fingerprint(vocabulary.folder), texts).items()}
    usage = count_tokens(texts, vocabulary.tokenizer, vocabulary.num_rows, config.data_tokens)
    trimmed = Trimmed(vocabulary, choose_tokens(usage.counts, vocabulary.definition, vocabulary.always, config))
    with disk_errors(out), staged_folder(out) as staged:
        sha256 = _write(trimmed, staged)
        text = compare_tokens(texts, usage, vocabulary.tokenizer, _tokenizer(trimmed, staged), trimmed.new)
        record = _figures(trimmed, staged) | {
            "counted_tokens": int(usage.counts.sum()),
            "documents": usage.documents,
            "text": text,
            "check": dataclasses.asdict(_check(trimmed, staged, config)),
        }
        names = sorted(path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file())
        hashes = {name: sha256.get(name) or sha256_file(staged / name) for name in names}
        seconds = time.monotonic() - started
        made = manifest(config=to_dict(config), inputs=inputs, outputs=hashes, seconds=seconds)
        record |= {"sha256": hashes, "manifest": made}
        write_json(staged / RECORD, record)
    return TrimResult(out=out, record=record)


def _write(trimmed: Trimmed, out: Path) -> dict[str, str]:
    """Write all files of the model; SHA-256 of the weight files by name."""
    tensors = trimmed.tensors()
    require_space(out, sum(tensor.num_bytes for tensor in tensors))
    with Copying([(out, tensors)]) as copying:
        write_json(out / "config.json", trimmed.config_json)
        _write_side_files(trimmed, out)
        load_shapes(out)
        return copying.finish()[0]


def _write_side_files(trimmed: Trimmed, out: Path) -> None:
    copy_side_files(trimmed.vocabulary.folder, out)
    for path in [path for pattern in _TOKENIZER_FILES for path in out.glob(pattern)]:
        path.unlink(missing_ok=True)
    write_json(out / "tokenizer.json", trimmed.vocabulary.definition.rebuilt(trimmed.new))
    if trimmed.generation_json:
        write_json(out / "generation_config.json", trimmed.generation_json)
    if (settings := out / _TOKENIZER_CONFIG).is_file():
        content, new = read_json(settings), trimmed.new
        if "added_tokens_decoder" in content:
            tokens = content["added_tokens_decoder"].items()
            content["added_tokens_decoder"] = {str(new[int(n)]): token for n, token in tokens if int(n) in new}
            write_json(settings, content)


def _tokenizer(trimmed: Trimmed, folder: Path) -> Any:
    """The rebuilt tokenizer as it is loaded.

    Raises:
        InputError: it has other ids than it was to have, or cannot be loaded.
    """
    tokenizer, new = load_tokenizer(folder), trimmed.new
    expected = {text: new[old] for text, old in trimmed.vocabulary.definition.ids.items() if old in new}
    if tokenizer.get_vocab() != expected:
        raise InputError(
            f"The tokenizer of {trimmed.vocabulary.name} ({type(tokenizer).__name__}) cannot be rebuilt: what is "
            "loaded of it has other tokens than were written. Nothing was written."
        )
    return tokenizer


def _check(trimmed: Trimmed, folder: Path, config: TrimConfig) -> LogitsCheck:
    skipped = reason_to_skip(trimmed.vocabulary.num_parameters) if config.check else "asked not to"
    if skipped is not None:
        return LogitsCheck(skipped=skipped)
    return compare_logits(trimmed.vocabulary.folder, folder, trimmed.kept)


def _figures(trimmed: Trimmed, out: Path) -> dict[str, Any]:
    vocabulary = trimmed.vocabulary
    files = check_weight_files(vocabulary.folder)
    return {
        "model": vocabulary.name,
        "vocab_before": vocabulary.num_rows,
        "vocab_after": len(trimmed.kept),
        "kept_ids": trimmed.kept,
        "params_before": vocabulary.num_parameters,
        "params_after": count_parameters(trimmed.model),
        "bytes_before": sum(path.stat().st_size for path in files),
        "bytes_after": sum(path.stat().st_size for path in out.glob(WEIGHT_FILES)),
    }
