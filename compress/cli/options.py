"""Options that several commands share."""

import click

from compress.base.errors import UsageError
from compress.model.remote_code import trusting


def _count(context: click.Context, option: click.Parameter, text: str) -> int:
    from compress.base.units import parse_count

    try:
        count = parse_count(text)
    except ValueError as error:
        raise UsageError(f"--flops-per-s: {error}.") from error
    if count < 1:
        raise UsageError(f"--flops-per-s {text}: write a rate above 0, e.g. 400T.")
    return count


def _trust(context: click.Context, option: click.Parameter, trust: bool) -> None:
    context.with_resource(trusting(trust))


set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="A.B=V",
    help="Override one value, named as in a recipe; may be repeated.",
)
trust_option = click.option(
    "--trust-remote-code",
    is_flag=True,
    expose_value=False,
    callback=_trust,
    help="Let models bring Python code of their own, which runs with all your rights: read it first.",
)
redo_option = click.option(
    "--redo",
    multiple=True,
    metavar="STEP",
    help="Do trim, prune, data, cache, distill, grow, export or eval anew: what is there moves to OUT/old. May be "
    "repeated.",
)
flops_option = click.option(
    "--flops-per-s",
    metavar="RATE",
    default="400T",
    show_default=True,
    callback=_count,
    help="FLOPs a second, for the hours.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else.")
