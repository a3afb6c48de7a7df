"""The command line in a process to which something happens: a signal, a full disk, a write that fails.

A fault is named by the functions at whose n-th call it strikes, `module:name` or `module:Class.method`, as they are
looked up there: `compress.distill.loop.checkpoint:save_file`, `os:replace`. `run_with` starts a fresh process;
`Commands` forks one from a process that has imported everything already, which saves the seconds that importing takes.

Run as a script, this file is that process: `FAULTS ARGUMENTS...` with the faults as JSON, or `serve`.
"""

import builtins
import dataclasses
import errno
import fnmatch
import functools
import importlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_IMPORTED_ONCE = (
    "compress.run.pipeline", "compress.evaluate.evaluation", "compress.evaluate.harness.benchmarks",
    "compress.distill.objective.kernels.cpu", "accelerate", "torch._dynamo", "transformers.conversion_mapping",
    "transformers.generation.utils", "transformers.models.llama.modeling_llama",
)  # fmt: skip
_STRUCK = "fault_injection: struck at "


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signal:
    """The process sends itself `signals` at the `call`-th call of any of `at`, before the function runs or `after`.

    Only calls with an argument that is a path like `path` (fnmatch), or an open file of such a path, count.
    """

    at: tuple[str, ...]
    path: str | None = None
    call: int = 1
    after: bool = False
    signals: tuple[str, ...] = ("SIGKILL",)

    def install(self) -> None:
        """Set the trap in this process."""
        _at_call(self.at, self.path, self.call, self.after, self._strike)

    def _strike(self) -> None:
        for name in self.signals:
            os.kill(os.getpid(), getattr(signal, name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FullDisk:
    """No file may grow beyond `file_bytes` (RLIMIT_FSIZE), from the start or from the `call`-th call of any of `at` on.

    This stops native code too, which `FailWrite` does not see.
    """

    file_bytes: int
    at: tuple[str, ...] = ()
    path: str | None = None
    call: int = 1

    def install(self) -> None:
        """Set the limit, or the trap that sets it."""
        limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (self.file_bytes, self.file_bytes))
        if self.at:
            _at_call(self.at, self.path, self.call, False, limit)
        else:
            limit()


@dataclasses.dataclass(frozen=True, kw_only=True)
class FailWrite:
    """The `call`-th write, and all later ones, to files whose path matches `path` (fnmatch) fail with `error`."""

    path: str
    call: int = 1
    error: str = "ENOSPC"

    def install(self) -> None:
        """Wrap `open`, which `Path.open` and `Path.write_text` go through."""
        code, calls, original = getattr(errno, self.error), [0], io.open

        def failing(write: Callable[..., Any], name: str) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                calls[0] += 1
                if calls[0] >= self.call:
                    _note_strike()
                    raise OSError(code, os.strerror(code), name)
                return write(*arguments)

            return call

        def opened(file: Any, *arguments: Any, **options: Any) -> Any:
            found = original(file, *arguments, **options)
            if isinstance(file, str | os.PathLike) and fnmatch.fnmatch(os.fspath(file), self.path) and found.writable():
                return _Guarded(found, failing(found.write, os.fspath(file)))
            return found

        io.open = builtins.open = opened  # type: ignore[assignment]


class _Guarded:
    """A file whose `write` is another function."""

    def __init__(self, file: Any, write: Callable[..., Any]) -> None:
        self._file, self.write = file, write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Guarded":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crash:
    """Functions raise a RuntimeError instead of running; in `message` $NAME stands for an environment variable."""

    at: tuple[str, ...]
    message: str

    def install(self) -> None:
        """Set the trap in this process."""

        def crash(*arguments: Any, **options: Any) -> None:
            _note_strike()
            raise RuntimeError(os.path.expandvars(self.message))

        for name in self.at:
            owner, last = _find(name)
            setattr(owner, last, crash)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """A constant of a module is another: smaller shards, more frequent saves."""

    name: str
    value: float

    def install(self) -> None:
        """Set it in this process."""
        owner, last = _find(self.name)
        setattr(owner, last, self.value)


Fault = Signal | FullDisk | FailWrite | Crash | Setting


def _find(name: str) -> tuple[Any, str]:
    """The object that holds `module:a.b`, and `b`."""
    module, _, path = name.partition(":")
    *parents, last = path.split(".")
    return functools.reduce(getattr, parents, importlib.import_module(module)), last


def _at_call(names: Sequence[str], path: str | None, number: int, after: bool, strike: Callable[[], object]) -> None:
    """Have `strike` called at the `number`-th call of any of some functions."""
    calls = [0]

    def trapped(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            counts = path is None or any(fnmatch.fnmatch(found, path) for found in _paths(arguments))
            calls[0] += counts
            due = counts and calls[0] == number
            if due and not after:
                _note_strike()
                strike()
            try:
                return function(*arguments, **options)
            finally:
                if due and after:
                    _note_strike()
                    strike()

        return call

    for name in names:
        owner, last = _find(name)
        setattr(owner, last, trapped(getattr(owner, last)))


def _paths(arguments: Sequence[Any]) -> Iterator[str]:
    for argument in arguments:
        if isinstance(argument, str | os.PathLike):
            yield os.fspath(argument)
        elif isinstance(argument, int) and os.path.exists(f"/proc/self/fd/{argument}"):
            yield os.readlink(f"/proc/self/fd/{argument}")


def _note_strike() -> None:
    os.write(2, f"{_STRUCK}{time.monotonic()}\n".encode())


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a command."""

    returncode: int
    """Exit status, or minus the number of the signal that ended it."""
    stdout: str
    stderr: str
    ended: float
    """When it ended, `time.monotonic`."""

    @property
    def struck(self) -> bool:
        """Whether a fault came about."""
        return _STRUCK in self.stderr

    @property
    def seconds_after(self) -> float:
        """Time from the first fault to the end of the process."""
        return self.ended - float(self.stderr.split(_STRUCK)[1].split()[0])

    @property
    def said(self) -> str:
        """stderr on one line."""
        return " ".join(self.stderr.split())


def environment(**changes: str) -> dict[str, str]:
    """The environment of a command: no network, no GPU, one thread."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **changes}


def command_with(faults: Sequence[Fault], *arguments: str) -> list[str]:
    """The command line of a fresh process that runs `compress ARGUMENTS`."""
    # -P: the folder of this file must not be on the command's path
    return [sys.executable, "-P", __file__, _to_json(faults), *arguments]


def run_with(faults: Sequence[Fault], *arguments: str, cwd: Path | None = None, **changes: str) -> Outcome:
    """`compress ARGUMENTS` in a fresh process; `changes` are environment variables."""
    command = command_with(faults, *arguments)
    done = subprocess.run(
        command, cwd=cwd or ROOT, env=environment(**changes), capture_output=True, text=True, input="", timeout=600
    )
    return Outcome(done.returncode, done.stdout, done.stderr, time.monotonic())


class Commands:
    """Commands forked from a warm process, one at a time. Each is a process as a fresh one is: same code, own signals.

    The warm process has one thread of its own and has computed nothing.
    """

    def __init__(self, server: "subprocess.Popen[str]", folder: Path) -> None:
        self._server, self.folder, self._started = server, folder.absolute(), 0

    def start(self, faults: Sequence[Fault], *arguments: str, stdin: str = "", **changes: str) -> int:
        """Start `compress ARGUMENTS`; returns its process id. `changes` are environment variables."""
        self._started += 1
        self._output(".in").write_text(stdin)
        for suffix in (".out", ".err"):  # a process may be killed before it opens them
            self._output(suffix).touch()
        request = {
            "faults": _to_json(faults),
            "arguments": arguments,
            "output": str(self._output()),
            "environment": changes,
        }
        return int(self._ask(json.dumps(request)))

    def wait(self) -> Outcome:
        """Wait until the command started last has ended."""
        status, ended = self._ask("wait").split()
        stdout, stderr = (self._output(suffix).read_text(errors="replace") for suffix in (".out", ".err"))
        return Outcome(os.waitstatus_to_exitcode(int(status)), stdout, stderr, float(ended))

    def run(self, faults: Sequence[Fault], *arguments: str, stdin: str = "", **changes: str) -> Outcome:
        """`start` and `wait`."""
        self.start(faults, *arguments, stdin=stdin, **changes)
        return self.wait()

    @property
    def stderr(self) -> Path:
        """What the command started last has said so far."""
        return self._output(".err")

    def _output(self, suffix: str = "") -> Path:
        return self.folder / f"command-{self._started}{suffix}"

    def _ask(self, line: str) -> str:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(line + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, "the warm process has ended"
        return answer


@contextmanager
def warm_commands(folder: Path, *, mode: str = "warm") -> Iterator[Commands]:
    """A warm process while the block runs; what commands print goes to files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", __file__, "serve", mode]
    server = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with server:
        yield Commands(server, folder)


fresh_commands = functools.partial(warm_commands, mode="fresh")
"""The same for commands that import everything themselves: the process they are forked from has imported nothing."""


def _to_json(faults: Sequence[Fault]) -> str:
    return json.dumps([{"kind": type(fault).__name__, **dataclasses.asdict(fault)} for fault in faults])


def install(faults: str) -> None:
    """Set the traps of some faults, given as JSON, in this process."""
    kinds: dict[str, type[Fault]] = {kind.__name__: kind for kind in (Signal, FullDisk, FailWrite, Crash, Setting)}
    for fields in json.loads(faults):
        kinds[fields.pop("kind")](**fields).install()


def _command(faults: str, arguments: Sequence[str]) -> None:
    from compress.cli import main

    sys.argv = ["compress", *arguments]
    install(faults)
    main()


def _serve(mode: str) -> None:
    """Fork a command for each line of stdin; in the child this returns once its command has."""
    for name in _IMPORTED_ONCE if mode == "warm" else ():
        importlib.import_module(name)
    answers, child = os.fdopen(os.dup(1), "w"), 0
    for line in sys.stdin:
        if line == "wait\n":
            status = os.waitpid(child, 0)[1]
            print(status, time.monotonic(), file=answers, flush=True)
            continue
        child = os.fork()
        if child == 0:
            request = json.loads(line)
            os.dup2(os.open(request["output"] + ".in", os.O_RDONLY), 0)
            for number, suffix in ((1, ".out"), (2, ".err")):
                os.dup2(os.open(request["output"] + suffix, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
            os.environ.update(request["environment"])
            _command(request["faults"], request["arguments"])
            return
        print(child, file=answers, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        _serve(sys.argv[2])
    else:
        _command(sys.argv[1], sys.argv[2:])
