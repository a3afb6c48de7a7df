"""What would refuse an export, before anything is written."""

import functools
from pathlib import Path

from compress.base.errors import Faults, InputError
from compress.base.outputs import check_outputs
from compress.model.facts import ModelFacts, look_at_model
from compress.model.kinds import require_text_alone
from compress.ship.exporting.config import CASTS, ExportConfig, is_gguf_format
from compress.ship.exporting.record import export_output


def check_export(student: str | Path, out: Path, config: ExportConfig, faults: Faults) -> ModelFacts | None:
    """Find what would refuse to export a model that is there, and return its facts if there is one."""
    check_outputs([export_output(out)], faults)
    facts = look_at_model(str(student), faults)
    if facts is not None:
        check_formats(config, facts, faults)
    return facts


def check_formats(config: ExportConfig, student: ModelFacts, faults: Faults) -> None:
    """Find what would refuse to export a model that is there, or will be."""
    if (made := getattr(student.config, "quantization_config", None)) is not None:
        how = made.get("quant_method") if isinstance(made, dict) else getattr(made, "quant_method", None)
        faults.found.append(
            InputError(
                f"{student.name} is quantised already ({getattr(how, 'value', how)}), and cannot be exported in other "
                "bits: export the model that it was made from."
            )
        )
        return
    faults.of(lambda: require_text_alone(student.config, student.name, "Exporting"))
    for name in config.format:
        faults.of(functools.partial(_check_format, config.only(name), student))


def _check_format(config: ExportConfig, student: ModelFacts) -> None:
    (name,) = config.format
    if name in CASTS:
        return
    if is_gguf_format(name):
        from compress.ship.exporting.gguf_file import check_gguf

        check_gguf(student.name, student.config, student.side)
    else:
        from compress.ship.exporting.quantized import check_quantized

        check_quantized(student.name, student.config, config)
