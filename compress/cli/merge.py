"""`compress merge`: several models in, one out."""

from pathlib import Path
from typing import Any

import click

from compress.base import processes
from compress.cli.flags import flags
from compress.cli.options import json_option, trust_option
from compress.cli.results import print_result

_CONFIG = "compress.ship:MergeConfig"


@click.command(short_help="Merge models of one architecture into one.")
@click.argument("models", nargs=-1, required=True, metavar="A B ...")
@click.argument("out", type=click.Path(path_type=Path))
@flags(_CONFIG, "method", "weights", "base", "density", "scale")
@click.option("--dry-run", is_flag=True, help="Look whether the models go together; write nothing.")
@trust_option
@json_option
def merge(models: tuple[str, ...], out: Path, dry_run: bool, as_json: bool, **given: Any) -> None:
    """Merge the models A, B, ..., folders or hub ids of one architecture, into OUT.

    A tensor of each is in memory at a time.
    """
    from compress import ship
    from compress.base.config import build_from

    config = build_from(ship.MergeConfig, {name: value for name, value in given.items() if value is not None})
    if dry_run:
        plan = ship.plan_merge(models, out, config)
        print_result(plan.to_dict(), plan.describe(), as_json)
        return
    result = processes.on_main(lambda: ship.merge(models, out, config))
    print_result(result.record, result.describe(), as_json)
