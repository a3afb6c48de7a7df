"""`compress distill`: a student, its teacher and text in, a healed student out."""

from pathlib import Path
from typing import Any

import click

from compress.cli.flags import flag, flags
from compress.cli.options import json_option, set_option, trust_option
from compress.cli.results import print_result


@click.command(short_help="Heal a student from its teacher on text.")
@click.option("--student", required=True, metavar="MODEL", help="Where training starts: a folder or a hub id.")
@click.option(
    "--teacher",
    metavar="MODEL",
    help="The model to learn from: a folder, a GGUF file or a hub id; not needed with --alpha 0.",
)
@flag(
    "compress.data:DataConfig",
    "dataset",
    "--data",
    more="Or a run's data/, prepared. A blend: `--set data.sources=[...]`.",
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Run folder: OUT/data, OUT/train, OUT/student."
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A cache of the teacher on the text (`compress cache`), to read in its place.",
)
@flag("compress.distill:DistillConfig", "tokens", more="Needed for hub data.")
@flags("compress.distill:DistillConfig", "alpha", "temperature", "train")
@trust_option
@set_option
@json_option
def distill(
    student: str,
    teacher: str | None,
    dataset: str | None,
    out: Path,
    cache: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
    **training: Any,
) -> None:
    """Heal a student from its teacher on text. Run the same command again to resume.

    Further settings go through --set: `--set distill.lr=1e-4 --set data.seq_len=1024`.
    """
    from compress.base.config import build, given_flags
    from compress.run.distill_text import distill_text
    from compress.run.options import DistillOptions

    text = {"dataset": dataset, "tokens": training["tokens"]}
    given = given_flags({"data": text, "distill": training}, overrides)
    options = build(DistillOptions, given)
    text = given.data["data"]
    result = distill_text(options, student=student, teacher=teacher, run=out, given=text, cache=cache)
    print_result(result.to_dict(), result.describe(), as_json)
