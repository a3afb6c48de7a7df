"""`compress export`: a model in, the same in other formats out."""

from pathlib import Path
from typing import Any

import click

from compress.base import processes
from compress.cli.flags import flag, flags
from compress.cli.options import json_option, set_option, trust_option
from compress.cli.results import print_result

_CONFIG = "compress.ship:ExportConfig"


@click.command(short_help="Write a model in fewer bits, another dtype, or as GGUF.")
@click.argument("student")
@click.argument("out", type=click.Path(path_type=Path))
@flag(_CONFIG, "format", more="One makes OUT itself, several OUT/int8 and so on.", required=True)
@flags(_CONFIG, "group_size")
@flag(_CONFIG, "check", "--check/--no-check")
@click.option("--push", "repository", metavar="ORG/NAME", help="Upload OUT to a private repository on the hub.")
@click.option("--dry-run", is_flag=True, help="Look for what would refuse it; write nothing.")
@trust_option
@set_option
@json_option
def export(
    student: str,
    out: Path,
    repository: str | None,
    dry_run: bool,
    overrides: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Write STUDENT, a model folder or hub id, to OUT in another format, with a README.md that says what it is."""
    from compress import ship
    from compress.base.config import from_flags
    from compress.base.errors import Faults
    from compress.base.progress import say
    from compress.run.options import ExportOptions

    config, faults = from_flags(ExportOptions, {"export": given}, overrides).export, Faults()
    if dry_run or repository is not None:
        ship.check_export(student, out, config, faults)
        if repository is not None:
            faults.of(lambda: ship.check_push(repository))
        faults.refuse()
    if dry_run:
        formats = list(config.format)
        print_result({"student": student, "formats": formats}, f"{student} as {', '.join(formats)}", as_json)
        return
    if len(config.format) == 1:
        results = [processes.on_main(lambda: ship.export(student, out, config))]
    else:
        results = list(processes.on_main(lambda: ship.export_family(student, out, config)))
    records = {result.record["format"]: result.record for result in results}
    said = "\n".join(result.describe() for result in results)
    print_result(records if len(results) > 1 else results[0].record, said, as_json)
    if repository is not None:
        say(f"pushed to {processes.on_main(lambda: ship.push(out, repository))}")
