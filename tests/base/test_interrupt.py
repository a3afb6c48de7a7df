"""Signals outside the loops that save: one is enough, and it is not lost."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from compress.base import signals
from compress.base.signals import check_interrupt, interrupt_on_signal


@pytest.fixture(autouse=True)
def handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(signals, "_asked_at", None)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    interrupt_on_signal()
    yield
    for number, handler in old.items():
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    """Send this process a signal, and give Python the moment it needs to handle it."""
    os.kill(os.getpid(), number)
    time.sleep(0.05)


def run_command(script: str) -> subprocess.CompletedProcess[str]:
    """Run `compress wait` in a fresh process, with the command that the script defines."""
    begin = "import os, signal, sys\nfrom compress import cli\n"
    end = '\nsys.argv = ["compress", "wait"]\ncli.main()\n'
    return subprocess.run([sys.executable, "-c", begin + script + end], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_swallowed_signal_is_raised_again_and_a_second_one_does_nothing(number: signal.Signals) -> None:
    check_interrupt()
    with pytest.raises(KeyboardInterrupt):
        send(number)
    for second in (signal.SIGINT, signal.SIGTERM):
        send(second)
    with pytest.raises(KeyboardInterrupt):
        check_interrupt()


def test_a_signal_later_is_a_new_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGTERM)
    send(signal.SIGTERM)
    monkeypatch.setattr(signals, "_ONE_REQUEST_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGTERM)


def test_the_command_line_ends_with_75_whatever_follows_the_first_signal() -> None:
    """A command whose clean-up is hit by two more signals."""
    script = """
@cli.cli.command()
def wait():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        sys.stderr.write("tidied\\n")
"""
    done = run_command(script)
    assert done.returncode == 75, done.stderr
    assert done.stderr.split("\n", 1)[0] == "tidied"
    assert done.stderr.endswith("Stopped. Run the same command again to go on.\n")
    assert "Traceback" not in done.stderr


def test_a_signal_that_a_finalizer_swallows_shows_no_traceback() -> None:
    script = """
from compress.base.signals import check_interrupt
class Group:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass
class Broken:
    def __del__(self):
        raise ValueError("another fault is shown")
@cli.cli.command()
def wait():
    Broken()
    Group()
    check_interrupt()
"""
    done = run_command(script)
    assert done.returncode == 75, done.stderr
    assert "KeyboardInterrupt" not in done.stderr
    assert "another fault is shown" in done.stderr


def test_an_error_that_a_signal_was_made_into_is_a_stop() -> None:
    """pydantic's compiled code makes a SchemaError of an interrupt that hits it."""
    script = """
@cli.cli.command()
def wait():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    except KeyboardInterrupt as interrupt:
        raise ValueError("made of an interrupt") from interrupt
"""
    done = run_command(script)
    assert done.returncode == 75, done.stderr
    assert done.stderr == "Error: Stopped. Run the same command again to go on.\n"
