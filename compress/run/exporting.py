"""The steps of a run that write its healed student in other formats."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from compress.base.config import to_dict
from compress.base.currency import Missing
from compress.base.disk import sha256_file
from compress.base.processes import on_main
from compress.base.progress import say
from compress.model.files import copy_side_files, model_fingerprint
from compress.run.finders import at
from compress.run.layout import Layout
from compress.run.recipe import Recipe
from compress.run.steps import Step, folder_step
from compress.ship import ExportConfig, export
from compress.ship.exporting.config import is_gguf_format, model_file
from compress.ship.exporting.record import RECORD, export_inputs


def exporting(recipe: Recipe, layout: Layout, after: frozenset[str]) -> list[Step]:
    """A step for each format that a recipe names; none where it names none."""
    if recipe.export is None:
        return []
    return [_export(recipe.export.only(name), layout, after) for name in recipe.export.format]


def _export(config: ExportConfig, layout: Layout, after: frozenset[str]) -> Step:
    (name,) = config.format
    out, student = layout.exported / name, at(layout.student)

    def make() -> None:
        say(f"export: {student()} -> {out}")
        say(export(student(), out, config).describe())

    return folder_step(
        f"export {name}",
        "an exported model",
        out / RECORD,
        make,
        kind=ExportConfig,
        settings=to_dict(config),
        inputs=export_inputs(lambda: model_fingerprint(student())),
        after=after,
        group="export",
    )


def exported_models(recipe: Recipe, layout: Layout) -> dict[str, Path]:
    """What of each format is evaluated, a folder or a GGUF file, by the stem of its evaluation."""
    formats = recipe.export.format if recipe.export is not None else ()
    return {
        f"export-{name}": layout.exported / name / (model_file(name) if is_gguf_format(name) else "")
        for name in formats
    }


def gguf_fingerprint(file: Path) -> dict[str, str]:
    """`model_fingerprint` of what a GGUF file is dequantised into."""
    if not file.is_file():
        raise Missing(f"{file} is not there")
    return {"model.gguf": sha256_file(file)}


@contextlib.contextmanager
def dequantised(file: Path, student: Path) -> Iterator[Path]:
    """The model in an exported GGUF file as a folder, exactly, in float32, for as long as the block runs.

    Its tokenizer is that of the model that was exported: the same, which the export made sure of, in the form that the
    run's text was prepared with.
    """
    home = on_main(lambda: Path(tempfile.mkdtemp(prefix=".dequantised-", dir=file.parent.parent)))
    try:
        yield on_main(lambda: _converted(file, home / sha256_file(file), student))
    finally:
        on_main(lambda: shutil.rmtree(home, ignore_errors=True))


def _converted(file: Path, out: Path, student: Path) -> Path:
    from compress.model.gguf_conversion import convert

    convert(file, out, dtype="float32")
    copy_side_files(student, out)
    return out
