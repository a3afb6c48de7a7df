"""`compress init`: a teacher in, a recipe of the best known way to make it smaller out."""

from pathlib import Path
from typing import Any

import click

from compress.base import processes
from compress.cli.flags import flags
from compress.cli.options import json_option, trust_option
from compress.cli.results import print_result


@click.command(short_help="Write a recipe for a model and this machine.")
@click.argument("teacher")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("recipe.yaml"),
    show_default=True,
    help="The recipe to write; never one that is there.",
)
@flags("compress.run.init_config:InitConfig", "speedup", "keep_score", "layers", "data", "hours")
@trust_option
@json_option
def init(teacher: str, out: Path, as_json: bool, **given: Any) -> None:
    """Write a recipe for TEACHER (a hub id, a folder or a GGUF file) of the best known way to make it smaller here.

    Name one of --speedup, --keep-score and --layers, or none. What is chosen, and why, is shown as a table.
    """
    from compress.base.config import from_flags
    from compress.base.progress import say
    from compress.base.units import format_count
    from compress.run.init import write_draft
    from compress.run.init_config import InitOptions

    asked = from_flags(InitOptions, {"init": given}, ()).init
    draft = processes.on_main(lambda: write_draft(teacher, asked, out))
    print_result(draft.to_dict(), draft.describe(), as_json)
    rate = format_count(draft.figures["flops_per_s"])
    say(f"Wrote {out}. Next: compress run {out} --dry-run --flops-per-s {rate}")
