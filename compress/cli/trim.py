"""`compress trim`: a model and a text in, the model without the token ids that the text never uses out."""

from pathlib import Path
from typing import Any

import click

from compress.base import processes
from compress.cli.flags import flag, flags
from compress.cli.options import json_option, set_option, trust_option
from compress.cli.results import print_result

_CONFIG = "compress.prune:TrimConfig"


@click.command(short_help="Drop the token ids that a text never uses.")
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@flags(_CONFIG, "data", "keep_tokens", "data_tokens", "text_column")
@flag(_CONFIG, "check", "--check/--no-check")
@click.option("--dry-run", is_flag=True, help="Plan from the small files alone; write nothing.")
@trust_option
@set_option
@json_option
def trim(
    model: str,
    out: Path,
    dry_run: bool,
    overrides: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Drop the token ids that a text never uses from MODEL (a hub id or a folder), its tokenizer, embedding and head,
    and write the trimmed model to OUT. Any text can still be encoded, and no weight is trained.

    Further settings go through --set: `--set trim.multiple_of=8`.
    """
    from compress import prune as step
    from compress.base.config import from_flags
    from compress.base.errors import Faults
    from compress.run.options import TrimOptions

    config = from_flags(TrimOptions, {"trim": given}, overrides).trim
    if dry_run:
        faults = Faults()
        vocabulary = step.check_trimming(model, out, config, faults)
        if vocabulary is not None:
            print_result(vocabulary.to_dict(), vocabulary.describe(), as_json)
        faults.refuse()
        return
    result = processes.on_main(lambda: step.trim(model, out, config))
    print_result(result.record, result.describe(), as_json)
