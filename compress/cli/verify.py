"""`compress verify`: a run folder in, what does and does not hold of it out."""

from pathlib import Path

import click

from compress.base import processes
from compress.base.errors import InputError
from compress.cli.options import json_option, trust_option
from compress.cli.results import print_result


@click.command(short_help="Check a run's files, inputs and data order.")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="Its token store, if not RUN_DIR/data.")
@trust_option
@json_option
def verify(run_dir: Path, data: Path | None, as_json: bool) -> None:
    """Check RUN_DIR against its own records: hashes, inputs, settings, checkpoints, data order, weights.

    One line a check: ok, FAILED or not checked, and why. Exits 3 if one failed. Nothing is written or downloaded.
    """
    from compress.verify import verify_run

    def check_all() -> None:
        checks = []
        for check in verify_run(run_dir, data):
            checks.append(check)
            if not as_json:
                click.echo(check.describe())
        failed = [check.name for check in checks if check.status == "FAILED"]
        if as_json:
            record = {"run": str(run_dir), "ok": not failed, "checks": [check.to_dict() for check in checks]}
            print_result(record, "", as_json)
        if failed:
            raise InputError(f"{run_dir}: {len(failed)} of {len(checks)} checks failed: {', '.join(failed)}.")

    processes.on_main(check_all)
