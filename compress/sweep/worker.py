"""A process that trains some of a sweep's students, and evaluates them, for the one that began it (`processes`)."""

import contextlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from compress.base.errors import CompressError, InterruptedRun, reason_of
from compress.base.redact import redact
from compress.base.signals import ignore_signals, interrupt_on_signal, interrupted


def main() -> None:
    """Do the job on stdin; exit codes are those of the command line."""
    interrupt_on_signal()
    with os.fdopen(os.dup(1), "w") as told:
        os.dup2(2, 1)  # what libraries print is for the user
        job = json.loads(sys.stdin.readline())
        sys.argv = job["command"]
        threading.Thread(target=_stop_with_the_sweep, daemon=True).start()
        code = _code_of(job, told)
    ignore_signals()
    sys.exit(code)


def _stop_with_the_sweep() -> None:
    sys.stdin.read()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # nobody listens any more
    os.kill(os.getpid(), signal.SIGTERM)


def _code_of(job: dict[str, Any], told: TextIO) -> int:
    """What ends the process ends all its trainings that have not come to their end."""
    try:
        _work(job, told)
    except BaseException as error:
        if isinstance(error, InterruptedRun | KeyboardInterrupt) or interrupted():
            return InterruptedRun.exit_code
        if isinstance(error, CompressError):
            _tell(told, dict.fromkeys(job["runs"], str(error)))
            return error.exit_code
        sys.stderr.write(redact(traceback.format_exc()))
        _tell(told, dict.fromkeys(job["runs"], f"Unexpected {type(error).__name__}: {reason_of(error)}."))
        return 1
    return 0


def _tell(told: TextIO, ends: Mapping[int, str | None]) -> None:
    told.write(json.dumps(ends) + "\n")
    told.flush()


def _work(job: dict[str, Any], told: TextIO) -> None:
    from compress.run.pipeline import joined_run
    from compress.run.recipe import load_recipe
    from compress.sweep.cases import cases_of
    from compress.sweep.making import make_steps, measured, train
    from compress.sweep.sweep import for_sweep

    folder = Path(job["folder"])
    cases = cases_of(load_recipe(folder / "recipe.yaml"))
    with contextlib.ExitStack() as held:
        runs = {
            number: held.enter_context(joined_run(for_sweep(cases[number]), folder / "runs" / cases[number].folder))
            for number in job["runs"]
        }
        made = []
        for ends in train(cases, runs, sharing=job["sharing"]):
            _tell(told, ends)
            made += [number for number, why in ends.items() if why is None]
        make_steps(cases, runs, {number: measured(runs[number]) for number in made})
