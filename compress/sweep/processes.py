"""A sweep's students spread over processes of this machine, a GPU each: how they are started, heard and stopped.

Each is `compress.sweep.worker`. It reads its job from stdin, a line of JSON, and leaves stdin open: where that ends,
the process that began the sweep has, and so it saves and stops. On stdout it says what became of its trainings, in
lines of JSON; stderr is for the user, and every line of it is shown with the process's number.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.base.errors import UsageError
from compress.base.progress import Bar, console, progress_bar, say

_START = "import sys; sys.path[:] = {path!r}; from compress.sweep.worker import main; main()"
_GPUS = "CUDA_VISIBLE_DEVICES"
_LAST_WORDS_S = 10.0

Ends = dict[int, str | None]
"""Of runs by their number: None where the student was made, or what ended it."""


def number_of_processes(asked: int | None) -> int:
    """As many as were asked for; by default one for each GPU, without one a single one.

    Raises:
        UsageError: more than there are GPUs, where there are some.
    """
    gpus = _gpus()
    if asked is not None and gpus and asked > gpus:
        raise UsageError(f"--processes {asked}: each takes a GPU, and there are {gpus}. Ask for at most that many.")
    return asked or gpus or 1


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def spread_over(folder: Path, shares: Sequence[Sequence[int]], lock: int) -> Ends:
    """Train each share of the runs in a process of its own.

    `lock` is a descriptor of what is locked, which stays so as long as any of the processes is there. When this one is
    asked to stop, so are they, and they are waited for.
    """
    ends: Ends = {}
    common = {"folder": str(folder), "sharing": 1 if _gpus() else len(shares), "command": sys.argv}
    with contextlib.ExitStack() as shown:
        workers = []
        try:
            for number, share in enumerate(shares, 1):
                bar = progress_bar(f"process {number}", len(share), unit="students", visible=console.is_terminal)
                job = {**common, "runs": share}
                workers.append(_Worker(number, job, shown.enter_context(bar), ends, lock))
            for worker in workers:
                worker.wait()
        except BaseException:
            for worker in workers:
                worker.stop()
            for worker in workers:
                worker.wait()
            raise
    return ends


class _Worker:
    """A process at work, and the threads that listen to it."""

    def __init__(self, number: int, job: Mapping[str, Any], bar: Bar, ends: Ends, lock: int) -> None:
        self._number, self._bar, self._ends = number, bar, ends
        self._runs = [*job["runs"]]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **visible_gpu(number - 1)},
            pass_fds=[lock],
            text=True,
            errors="backslashreplace",
        )
        self._listening = [threading.Thread(target=listen, daemon=True) for listen in (self._hear, self._show)]
        for thread in self._listening:
            thread.start()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, which `wait` tells of
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()

    def wait(self) -> None:
        """Until it has ended; runs that it said nothing of are said to have ended with it."""
        code = self._process.wait()
        for thread in self._listening:
            thread.join(_LAST_WORDS_S)  # what it started itself may hold its pipes open
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        for run in self._runs:
            self._ends.setdefault(
                run, f"process {self._number} ended {how} before its training did. Run the same command again to go on."
            )

    def stop(self) -> None:
        """Let it save what it has, and end."""
        self._process.send_signal(signal.SIGTERM)

    def _hear(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            for run, why in told.items():
                self._ends.setdefault(int(run), why)
            self._bar.advance(len(told))

    def _show(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if said := line.rstrip():
                say(f"[{self._number}] {said}")
                self._bar.advance(0, said)


def visible_gpu(place: int) -> dict[str, str]:
    """The environment in which the process sees one GPU, of those that this one sees."""
    if not _gpus():
        return {}
    seen = os.environ.get(_GPUS)
    return {_GPUS: str(place) if seen is None else seen.split(",")[place]}
