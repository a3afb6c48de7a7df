"""Commands in processes of their own, forked from processes that have imported everything already.

Importing takes a process seconds, which is more than most tests ask of it. A forked command is a process as a fresh one
is: same code, own group, environment, signals and exit status. Those it is forked from have one thread each and have
computed nothing. Whoever starts them is their owner, and they end with it: the process of pytest, or that of
pytest-xdist whose workers share them.

Each listens at a socket, one for each of `STAGES`; who connects is answered by a process of its own, and when the
connection ends, so do the commands that were started through it.
"""

import atexit
import contextlib
import dataclasses
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fault_injection import STRUCK, Fault, install, to_json

ROOT = Path(__file__).resolve().parent.parent
STAGES: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "libraries": (
        "click", "nltk", "pandas", "pyarrow.dataset", "pyarrow.parquet", "pydantic", "requests", "rich.console",
        "rich.progress", "rouge_score.rouge_scorer", "safetensors.torch", "scipy.stats", "sklearn.metrics", "torch",
        "torch._dynamo", "yaml",
    ),
    "all": (
        "accelerate", "compress.cli", "compress.distill.objective.kernels.cpu", "compress.evaluate.evaluation",
        "compress.evaluate.harness.benchmarks", "compress.run.pipeline", "compress.verify",
        "transformers.conversion_mapping", "transformers.generation.utils", "transformers.models.llama.modeling_llama",
    ),
}  # fmt: skip
"""What each process has imported beyond those before it; `libraries` do not look at the hub's address and settings."""
SERVER = "COMPRESS_TESTS_COMMANDS"
"""The environment variable with the folder of the sockets, for processes that share another one's."""


def environment(**changes: str) -> dict[str, str]:
    """The environment of a command: no network, no GPU, one thread."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **changes}


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
        return STRUCK in self.stderr

    @property
    def seconds_after(self) -> float:
        """Time from the first fault to the end of the process."""
        return self.ended - float(self.stderr.split(STRUCK)[1].split()[0])

    @property
    def said(self) -> str:
        """stderr on one line."""
        return " ".join(self.stderr.split())


class Running:
    """A command that was started, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, link: "_Link", pid: int, output: Path) -> None:
        self._link, self.pid, self._output = link, pid, output
        self._ended: tuple[int, float] | None = None

    @property
    def stderr(self) -> Path:
        """What it has said so far."""
        return self._output.with_suffix(".err")

    @property
    def returncode(self) -> int | None:
        """Exit status, or minus the number of the signal that ended it; None before `poll` or `wait` found it."""
        return None if self._ended is None else self._ended[0]

    def poll(self) -> int | None:
        """The exit status, if it has ended."""
        return self._look("poll")

    def wait(self, timeout: float | None = None) -> Outcome:
        """Wait until it has ended; `subprocess.TimeoutExpired` if that takes longer."""
        if timeout is None:
            self._look("wait")
        else:
            deadline = time.monotonic() + timeout
            while self.poll() is None:
                if time.monotonic() > deadline:
                    raise subprocess.TimeoutExpired(f"command {self.pid}", timeout)
                time.sleep(0.002)
        assert self._ended is not None
        stdout, stderr = (self._output.with_suffix(s).read_text(errors="replace") for s in (".out", ".err"))
        return Outcome(self._ended[0], stdout, stderr, self._ended[1])

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait until it has ended; what it printed, and what it said."""
        outcome = self.wait(timeout)
        return outcome.stdout, outcome.stderr

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it is known to have ended."""
        if self._ended is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _look(self, how: str) -> int | None:
        if self._ended is None:
            answer = self._link.ask({how: self.pid})
            if answer is not None:
                self._ended = os.waitstatus_to_exitcode(answer[0]), answer[1]
        return self.returncode


class Commands:
    """Starts commands; what they print goes to files in `folder`. For one thread of the test process."""

    def __init__(self, folder: Path, sockets: Path) -> None:
        self.folder, self._sockets, self._started = folder.absolute(), sockets, 0
        self._links: dict[str, _Link] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def start(
        self,
        faults: Sequence[Fault],
        *arguments: str,
        script: Path | str | None = None,
        stage: str | None = None,
        stdin: str = "",
        cwd: Path = ROOT,
        **changes: str,
    ) -> Running:
        """Start `compress ARGUMENTS`, or a script or a module (its name) with them, in a process group of its own.

        `changes` are environment variables. `stage` is what it need not import itself: all, unless variables change
        that Hugging Face's libraries look at when they are imported.
        """
        self._started += 1
        output = self.folder / f"command-{self._started}"
        output.with_suffix(".in").write_text(stdin)
        for suffix in (".out", ".err"):  # a process may be killed before it opens them
            output.with_suffix(suffix).touch()
        request = {
            "faults": to_json(faults),
            "arguments": arguments,
            "script": None if script is None else str(script),
            "output": str(output),
            "cwd": str(cwd),
            "environment": environment(**changes),
        }
        another_hub = any(name.startswith("HF_") and name != "HF_TOKEN" for name in changes)
        link = self._link(stage or ("libraries" if another_hub else "all"))
        return Running(link, link.ask(request), output)

    def run(self, faults: Sequence[Fault], *arguments: str, **options: Any) -> Outcome:
        """`start` and wait."""
        return self.start(faults, *arguments, **options).wait()

    def launch(self, processes: int, *arguments: str, **options: Any) -> Outcome:
        """The same command in several processes, as torchrun starts them: when one fails, the others are ended."""
        running = self.start_launch(processes, *arguments, **options)
        while any(one.poll() is None for one in running):
            if any(one.returncode for one in running):
                for one in running:
                    one.kill()
            time.sleep(0.002)
        ended = [one.wait() for one in running]
        first = min((one for one in ended if one.returncode), key=lambda one: one.ended, default=ended[0])
        printed, said = "".join(one.stdout for one in ended), "".join(one.stderr for one in ended)
        return Outcome(first.returncode, printed, said, max(one.ended for one in ended))

    def start_launch(self, processes: int, *arguments: str, **options: Any) -> list[Running]:
        """Start the processes of `launch`."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launch = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_PORT": port}
        variables = {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in launch.items()}}
        return [
            self.start((), *arguments, RANK=str(rank), LOCAL_RANK=str(rank), **variables, **options)
            for rank in range(processes)
        ]

    def close(self) -> None:
        """Kill what still runs."""
        for link in self._links.values():
            link.close()

    def _link(self, stage: str) -> "_Link":
        if stage not in self._links:
            self._links[stage] = _Link(self._sockets / stage)
        return self._links[stage]


class _Link:
    """A connection to the processes of one stage: questions and answers, a line of JSON each."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rw")

    def ask(self, question: dict[str, Any]) -> Any:
        self._file.write(json.dumps(question) + "\n")
        self._file.flush()
        answer = self._file.readline()
        assert answer, "the process that commands are forked from has ended"
        return json.loads(answer)

    def close(self) -> None:
        self._file.close()
        self._socket.close()


@functools.cache
def serve() -> Path:
    """The folder of the sockets that this process and those it starts get their commands from."""
    if SERVER in os.environ:
        return Path(os.environ[SERVER])
    folder = tempfile.TemporaryDirectory(prefix="compress-tests-")
    sockets = Path(folder.name)
    listening, ready = os.pipe()
    # -P and del: no folder of ours is on a command's path
    start = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import commands; del sys.path[0]; "
    server = subprocess.Popen(
        [sys.executable, "-P", "-c", start + f"commands.listen({folder.name!r}, {ready})"],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        pass_fds=[ready],
        start_new_session=True,
    )
    os.close(ready)
    with open(listening, "rb") as told:
        told.read()  # until all listen
    os.environ[SERVER] = folder.name

    def end() -> None:
        os.environ.pop(SERVER, None)
        assert server.stdin is not None
        server.stdin.close()
        server.wait()
        folder.cleanup()

    atexit.register(end)
    return sockets


@functools.cache
def warm() -> Commands:
    """The commands of this process."""
    folder = tempfile.TemporaryDirectory(prefix="compress-tests-")
    commands = Commands(Path(folder.name), serve())
    atexit.register(folder.cleanup)
    atexit.register(commands.close)
    return commands


def listen(folder: str, ready: int) -> None:
    """Be the processes that commands are forked from, until the owner has ended; `ready` is closed when all listen."""
    listeners = [socket.socket(socket.AF_UNIX) for _ in STAGES]
    for stage, listener in zip(STAGES, listeners, strict=True):
        listener.bind(f"{folder}/{stage}")
        listener.listen()
    os.close(ready)
    for modules, listener in zip(STAGES.values(), listeners, strict=True):
        for name in modules:
            importlib.import_module(name)
        gc.collect()
        gc.freeze()  # the garbage collector of a fork would write to all there is, and so copy it
        if listener is listeners[-1] or os.fork() != 0:
            _accept(listener, listeners)


def _accept(listener: socket.socket, listeners: Sequence[socket.socket]) -> None:
    """Serve every connection in a process of its own, until the owner has ended."""
    for other in listeners:  # who connects to a process that could not import everything is refused, and does not wait
        if other is not listener:
            other.close()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those processes
    while True:
        readable, _, _ = select.select([listener, 0], [], [])
        if 0 in readable:
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            _answer(connection)
        connection.close()


def _answer(connection: socket.socket) -> None:
    """Do what each line asks: start a command, wait for one, or look whether one has ended."""
    questions, running = connection.makefile("rw"), set()
    for line in questions:
        question = json.loads(line)
        answer: Any
        if "arguments" in question:
            answer = os.fork()
            if answer == 0:
                os.close(connection.fileno())
                _become(question)
            os.setpgid(answer, answer)
            running.add(answer)
        else:
            ((how, pid),) = question.items()
            found, status = os.waitpid(pid, os.WNOHANG if how == "poll" else 0)
            answer = (status, time.monotonic()) if found else None
            running.discard(found)
        questions.write(json.dumps(answer) + "\n")
        questions.flush()
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    os._exit(0)


def _become(request: dict[str, Any]) -> None:
    """Be the command that is asked for, to the end."""
    os.setpgid(0, 0)
    for number, suffix, how in ((0, ".in", os.O_RDONLY), (1, ".out", os.O_WRONLY), (2, ".err", os.O_WRONLY)):
        os.dup2(os.open(request["output"] + suffix, how | os.O_APPEND), number)
    code: Any = 0
    try:
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        install(request["faults"])
        if request["script"] is None:
            sys.argv = ["compress", *request["arguments"]]
            importlib.import_module("compress.cli").main()
        else:
            sys.argv = [request["script"], *request["arguments"]]
            if request["script"].endswith(".py"):
                sys.path[:0] = [str(Path(request["script"]).parent), str(ROOT / "tests")]
                runpy.run_path(request["script"], run_name="__main__")
            else:
                runpy.run_module(request["script"], run_name="__main__")
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        sys.stderr.write(code + "\n")
    # What the interpreter does at its end, but for freeing one by one all objects there are: that takes seconds.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
