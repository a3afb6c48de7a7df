"""`compress export`: a model in, the same in other formats out, each complete and read back or absent."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.base.config import to_dict
from compress.base.disk import sha256_tree, staged_folder, write_json, write_text
from compress.base.errors import Faults, UsageError
from compress.base.records import manifest
from compress.model.files import WEIGHT_FILES, copy_side_files, model_fingerprint, resolve_model
from compress.model.load import load_config
from compress.model.parts import count_parameters, empty_model
from compress.ship.exporting.card import write_card
from compress.ship.exporting.cast import write_cast
from compress.ship.exporting.config import CASTS, ExportConfig, Format, is_gguf_format, model_file
from compress.ship.exporting.preflight import check_export
from compress.ship.exporting.readback import ReadBack, check_readback, reason_to_skip
from compress.ship.exporting.record import RECORD, ExportResult, export_inputs
from compress.weights.room import disk_errors


def export(student: str | Path, out: str | Path, config: ExportConfig) -> ExportResult:
    """Write the model `student`, a folder or hub id, to the folder `out` in the one format of `config.format`.

    int8, int4 and the dtypes are model folders that plain transformers loads; gguf-... is one file, model-TYPE.gguf. A
    README.md says what it came from, with scores where the model lies in a run folder; `out/export.json` what was done.

    Raises:
        UsageError: several formats are asked for, `out` is not free, or torchao is not installed.
        InputError: the model cannot be used, is quantised already, or has no form in the format.
        CompressError: what was written is not the model, or the disk is full. Nothing is left in `out`.
    """
    if len(config.format) != 1:
        raise UsageError("export.format: one is the format of one model; `export_family` makes several.")
    faults, out = Faults(), Path(out)
    check_export(student, out, config, faults)
    faults.refuse()
    with disk_errors(out), staged_folder(out) as staged:
        record = _made(student, staged, config)
    return ExportResult(out=out, record=record)


def export_family(student: str | Path, out: str | Path, config: ExportConfig) -> Sequence[ExportResult]:
    """Write a model of each format that is asked for to `out/FORMAT`; as `export` otherwise. They appear together, when
    all are done."""
    faults, out = Faults(), Path(out)
    check_export(student, out, config, faults)
    faults.refuse()
    with disk_errors(out), staged_folder(out) as staged:
        records = {}
        for name in config.format:
            (staged / name).mkdir()
            records[name] = _made(student, staged / name, config.only(name))
    return [ExportResult(out=out / name, record=record) for name, record in records.items()]


def _made(student: str | Path, at: Path, config: ExportConfig) -> dict[str, Any]:
    """Write all of one format into the folder `at`; its record."""
    started, (name,) = time.monotonic(), config.format
    folder = resolve_model(str(student))
    inputs = {role: find() for role, find in export_inputs(lambda: model_fingerprint(folder)).items()}
    _write(folder, at, config, str(student))
    model = load_config(folder)
    skipped = reason_to_skip(model, check=config.check)
    checked = ReadBack(skipped=skipped) if skipped is not None else check_readback(folder, at, name)
    parameters, size = count_parameters(empty_model(model)), _weight_bytes(at)
    record: dict[str, Any] = {
        "student": str(student),
        "format": name,
        "file": model_file(name) if is_gguf_format(name) else None,
        "params": parameters,
        "bytes": size,
        "bytes_before": _weight_bytes(folder),
        "bits_per_weight": 8 * size / parameters,
        "check": dataclasses.asdict(checked),
    }
    write_text(at / "README.md", write_card(folder, str(student), record))
    record["sha256"] = sha256_tree(at)
    seconds = time.monotonic() - started
    record["manifest"] = manifest(config=to_dict(config), inputs=inputs, outputs=record["sha256"], seconds=seconds)
    write_json(at / RECORD, record)
    return record


def _write(folder: Path, at: Path, config: ExportConfig, title: str) -> None:
    name: Format = config.format[0]
    if is_gguf_format(name):
        from compress.ship.exporting.gguf_file import write_gguf

        write_gguf(folder, at / model_file(name), name, Path(title).name)
        for path in [*folder.glob("LICENSE*"), *folder.glob("NOTICE*"), *folder.glob("USE_POLICY*")]:
            (at / path.name).write_bytes(path.read_bytes())
        return
    if name in CASTS:
        write_cast(folder, at, CASTS[name])
    else:
        from compress.ship.exporting.quantized import write_quantized

        write_quantized(folder, at, config)
    copy_side_files(folder, at)


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in (*folder.glob(WEIGHT_FILES), *folder.glob("*.gguf")))
