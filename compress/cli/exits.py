"""How a command that failed ends: one paragraph on stderr and an exit code.

0 done; 2 wrong usage or a bad recipe; 3 bad input data or model; 75 stopped by a signal after saving (run again to
resume); 1 anything else.
"""

import errno
import sys
from typing import NoReturn

import click

from compress.base import processes
from compress.base.errors import DISK_FULL, CompressError, InterruptedRun, UsageError, reason_of
from compress.base.redact import redact
from compress.base.signals import ignore_signals, interrupted

UNUSABLE_PATH = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
"""What the system says of a path that the user gave and that cannot be one."""
_LOWER = (
    "Take fewer rows or tokens at once: distill.micro_batch_rows (same result), eval.batch_tokens, eval.speed_batch, "
    "prune.batch_tokens, or data.seq_len."
)
_COMPILER = ("torch._dynamo.", "torch._inductor.")
_TOLD_BY_MAIN = (processes.MainProcessFailed, InterruptedRun, KeyboardInterrupt, click.Abort)


def fail(error: BaseException, debug: bool) -> NoReturn:
    """Say on stderr what ended the command, in one paragraph and after the traceback if `debug`, and exit."""
    ignore_signals()
    message, code = explain(error)
    if debug:
        import traceback

        click.echo(redact(traceback.format_exc()), err=True)
    told = isinstance(error, _TOLD_BY_MAIN)
    if processes.is_main():
        click.echo(f"Error: {redact(message)}", err=True)
    elif not told:
        click.echo(f"Error in process {processes.rank()}: {redact(message)}", err=True)
    sys.stderr.flush()
    sys.exit(code)


def explain(error: BaseException) -> tuple[str, int]:
    """What to tell the user of what ended the command, and its exit code.

    A signal may have been made into any error by code that it hit: what is raised after one counts as stopped.
    """
    if isinstance(error, InterruptedRun):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort) or interrupted():
        return "Stopped. Run the same command again to go on.", InterruptedRun.exit_code
    if isinstance(error, CompressError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        return _explain_os_error(error), UsageError.exit_code if error.errno in UNUSABLE_PATH else 1
    if _is_out_of_memory(error):
        return f"Out of memory ({reason_of(error) or type(error).__name__}). {_LOWER}", 1
    if type(error).__module__.startswith(_COMPILER):
        return f"torch.compile failed ({reason_of(error, 200)}). Set distill.compile to false to go on without it.", 1
    return (
        f"Unexpected {type(error).__name__}: {reason_of(error)}. "
        "This is a fault of the tool; `compress --debug ...` shows where."
    ), 1


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was asked for that there is not; only of what may mean that is torch imported to know."""
    if not isinstance(error, RuntimeError | MemoryError):
        return False
    from compress.inference.halving import is_out_of_memory

    return is_out_of_memory(error)


def _explain_os_error(error: OSError) -> str:
    place = f" ({error.filename})" if error.filename else ""
    if error.errno in DISK_FULL:
        return (
            f"No space left to write{place}: free some, or choose another output folder. Nothing half-written is left."
        )
    return f"{error.strerror or error}{place}."
