"""`compress cache`: a teacher and a token store in, a cache of the teacher's signals on it out."""

from pathlib import Path
from typing import Any

import click

from compress.base import processes
from compress.cli.flags import flags
from compress.cli.options import json_option, set_option, trust_option
from compress.cli.results import print_result


@click.command(short_help="Run a teacher once over a text, for trainings to read.")
@click.argument("teacher")
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@flags("compress.distill:CacheConfig", "kind")
@trust_option
@set_option
@json_option
def cache(teacher: str, store: Path, out: Path, overrides: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Run TEACHER (a hub id, a folder or a GGUF file) over the token store STORE (a run's data/) and write what it says
    of each token to OUT, for `compress distill --cache OUT`. Run the same command again to resume.

    The teacher is run as trainings would run it: `--set distill.precision=bf16 --set distill.document_mask=true`.
    """
    from compress.base.config import from_flags
    from compress.run.caching import cache_teacher
    from compress.run.options import CacheOptions

    options = from_flags(CacheOptions, {"cache": given}, overrides)
    made = processes.on_main(lambda: cache_teacher(options, teacher=teacher, store=store, out=out))
    print_result(made.record, made.text(), as_json)
