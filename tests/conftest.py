"""How all tests run: the environment, the processes that two workers share, what `--quick` leaves out, and the end."""

import gc
import os
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
LONG = Path(__file__).with_name("long.txt")
LONG_S = 0.5
"""A test function that takes more than this with all its parameters is long."""

# Triton reads it once, when it is imported. On a machine with a GPU the kernels are compiled instead.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--quick`, and how its list is made."""
    said = "leave out the tests of tests/long.txt, but for those of rooms in which something is not committed"
    parser.addoption("--quick", action="store_true", help=said)
    parser.addoption("--write-long", action="store_true", help="list in tests/long.txt the tests that take long")


def pytest_configure(config: pytest.Config) -> None:
    """Give each worker of pytest-xdist one thread, and all the same processes that commands are forked from."""
    if getattr(config.option, "numprocesses", None):
        from commands import serve

        os.environ.setdefault("OMP_NUM_THREADS", "1")
        serve()
    if config.getoption("--write-long") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Stopwatch())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what `--quick` does."""
    if config.getoption("--quick"):
        long, rooms = set(LONG.read_text().split()), rooms_at_work()
        out = {item for item in items if function_of(item.nodeid) in long and room_of(item.nodeid) not in rooms}
        config.hook.pytest_deselected(items=[item for item in items if item in out])
        items[:] = [item for item in items if item not in out]


def rooms_at_work() -> set[str]:
    """The rooms whose code or tests have changes that are not committed."""
    command = ["git", "status", "--porcelain", "--untracked-files=all", "--no-renames"]
    status = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    return {room_of(line[3:]) for line in status.splitlines()}


def room_of(path: str) -> str:
    """`distill` of distill/loop/train.py and tests/distill/test_step.py, `data` of compress/data/sample.py."""
    first, *rest = Path(path).parts
    return rest[0] if first in ("compress", "tests") and len(rest) > 1 else first


def function_of(nodeid: str) -> str:
    """The test without its parameters."""
    return nodeid.partition("[")[0]


class Stopwatch:
    """Adds up what tests take, and lists those that take long."""

    def __init__(self) -> None:
        self._seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add what a test, or what it needs, took."""
        self._seconds[function_of(report.nodeid)] += report.duration  # type: ignore[assignment]

    def pytest_sessionfinish(self) -> None:
        """Write the list."""
        LONG.write_text("".join(f"{name}\n" for name in sorted(self._seconds) if self._seconds[name] > LONG_S))


def pytest_collection_finish() -> None:
    """Leave what was imported out of all later garbage collections."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how many inputs the fuzz tried, by target."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    tallies = [value for report in reports for key, value in report.user_properties if key == "fuzz"]
    if not tallies:
        return
    terminalreporter.section("fuzz")
    for name, inputs, values, refused, seconds in tallies:
        told = f"{inputs} inputs, {values} read and {refused} refused, {seconds:.1f} s"
        terminalreporter.line(f"{name:<28} {told}")
    terminalreporter.line(f"{'all':<28} {sum(inputs for _, inputs, *_ in tallies)} inputs")
