"""`compress grow`: a healed student and its teacher in, models of sizes between out."""

from pathlib import Path
from typing import Any

import click

from compress.base import processes
from compress.cli.flags import flag, flags
from compress.cli.options import json_option, set_option, trust_option
from compress.cli.results import print_result

_CONFIG = "compress.prune:GrowConfig"


@click.command(short_help="Put blocks of a teacher back into its healed student.")
@click.argument("student")
@click.argument("teacher")
@click.argument("out", type=click.Path(path_type=Path))
@flag(_CONFIG, "layers", more="One number makes OUT itself, several OUT/24 and so on.")
@flags(_CONFIG, "by", "calibration", "calibration_tokens")
@flag(_CONFIG, "check", "--check/--no-check")
@click.option("--dry-run", is_flag=True, help="Plan from the small files alone; write nothing.")
@trust_option
@set_option
@json_option
def grow(
    student: str,
    teacher: str,
    out: Path,
    dry_run: bool,
    overrides: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Put blocks of TEACHER back where they were dropped from STUDENT, its healed cut, and write models of sizes
    between to OUT. No weight is trained.

    Further settings go through --set: `--set grow.batch_tokens=4096`.
    """
    from compress import prune as step
    from compress.base.config import from_flags
    from compress.base.errors import Faults
    from compress.run.options import GrowOptions

    config = from_flags(GrowOptions, {"grow": given}, overrides).grow
    if dry_run:
        faults = Faults()
        growth = step.check_growth(student, teacher, out, config, faults)
        if growth is not None:
            print_result(growth.to_dict(), growth.describe(), as_json)
        faults.refuse()
        return
    make = step.grow if len(config.layers) == 1 else step.grow_family
    result = processes.on_main(lambda: make(student, teacher, out, config))
    print_result(result.record, result.describe(), as_json)
