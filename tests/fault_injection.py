"""What may happen to a command (see `commands`): a signal, a full disk, a write that fails.

A fault is named by the functions at whose n-th call it strikes, `module:name` or `module:Class.method`, as they are
looked up there: `compress.distill.loop.checkpoint:save_file`, `os:replace`.
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
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

STRUCK = "fault_injection: struck at "
"""What is on stderr, before the time, when a fault comes about."""


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
    value: float | str

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
    os.write(2, f"{STRUCK}{time.monotonic()}\n".encode())


def to_json(faults: Sequence[Fault]) -> str:
    """What `install` takes, for another process."""
    return json.dumps([{"kind": type(fault).__name__, **dataclasses.asdict(fault)} for fault in faults])


def install(faults: str) -> None:
    """Set the traps of some faults, given as JSON, in this process."""
    kinds: dict[str, type[Fault]] = {kind.__name__: kind for kind in (Signal, FullDisk, FailWrite, Crash, Setting)}
    for fields in json.loads(faults):
        kinds[fields.pop("kind")](**fields).install()
