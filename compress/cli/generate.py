"""`compress generate`: prompts in, what a model answers to them out."""

from pathlib import Path
from typing import Any

import click

from compress.cli.flags import flags
from compress.cli.options import json_option, set_option, trust_option
from compress.cli.results import print_result

_CONFIG = "compress.generate:GenerateConfig"


@click.command(short_help="Let a model write text, to train students on.")
@click.argument("model")
@click.argument("prompts", metavar="PROMPTS")
@click.argument("out", type=click.Path(path_type=Path))
@flags(_CONFIG, "new_tokens", "temperature", "top_p", "samples", "limit", "seed")
@trust_option
@set_option
@json_option
def generate(model: str, prompts: str, out: Path, overrides: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Let MODEL answer PROMPTS, a SOURCE of conversations or texts as in `distill --data`, and write the folder OUT,
    which is such a SOURCE again. Run the same command again to resume.

    Of a conversation the model writes the answer to what the user says last; a text it continues after its first
    `prompt_tokens` tokens. Further settings go through --set: `--set generate.prompt_tokens=128`.
    """
    from compress.base.config import from_flags
    from compress.generate import generate as write
    from compress.run.options import GenerateOptions

    config = from_flags(GenerateOptions, {"generate": given}, overrides).generate
    result = write(model, prompts, out, config)
    print_result(result.to_dict(), result.describe(), as_json)
