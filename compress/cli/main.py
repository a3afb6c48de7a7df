"""The commands, and how each of them begins and ends. Everything heavy is imported inside commands."""

import io
import sys

import click

from compress.base import processes
from compress.base.signals import ignore_signals, interrupt_on_signal
from compress.cli.cache import cache
from compress.cli.compare import compare
from compress.cli.demo import demo
from compress.cli.distill import distill
from compress.cli.evaluate import evaluate
from compress.cli.exits import fail
from compress.cli.export import export
from compress.cli.generate import generate
from compress.cli.grow import grow
from compress.cli.init import init
from compress.cli.merge import merge
from compress.cli.prune import prune
from compress.cli.report import report
from compress.cli.run import run
from compress.cli.sweep import sweep
from compress.cli.trim import trim
from compress.cli.verify import verify


class _Commands(click.Group):
    """The commands, none of which takes an empty word: that is what an unset shell variable leaves."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            inner = click.Context(command, parent=ctx, info_name=name, resilient_parsing=True)
            given, _, _ = command.make_parser(inner).parse_args(list(rest))
            for parameter in command.params:
                value = given.get(str(parameter.name))
                if value == "" or (isinstance(value, list | tuple) and "" in value):
                    instead = "" if parameter.required else " Leave it out."
                    fault = f"it is empty: is a shell variable unset?{instead}"
                    raise click.BadParameter(fault, ctx=inner, param=parameter)
        return name, command, rest


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="compress")
@click.option("--debug", is_flag=True, help="Show the whole traceback when something fails.")
def cli(debug: bool) -> None:
    """Turn a Hugging Face causal LM into a smaller, faster one, and prove what it kept."""


_COMMANDS = (
    init, prune, trim, cache, distill, grow, generate, evaluate, export, merge, run, sweep, report, compare, verify,
    demo,
)  # fmt: skip
for _command in _COMMANDS:
    cli.add_command(_command)


def main() -> None:
    """Entry point: run the command and turn failures into one paragraph on stderr and an exit code."""
    debug = "--debug" in sys.argv[1:]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold bytes that are no text
    interrupt_on_signal()
    try:
        cli(prog_name="compress", standalone_mode=False)
        processes.leave()
        ignore_signals()
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (Exception, KeyboardInterrupt) as error:
        fail(error, debug)
