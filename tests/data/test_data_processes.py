"""Tokenizer processes: what becomes of them, and of the store, when a command or one of them is stopped or killed."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import Running, warm
from data_world import data_config, documents, write_source
from fault_injection import Setting
from helpers import save_tiny_model

from compress.data import TokenStore, prepare

PATIENCE_S = 120.0
SMALL_STEPS = (
    Setting(name="compress.data.sources.stream:BATCH_CHARS", value=2000),
    Setting(name="compress.data.store.preparation:SAVE_EVERY_S", value=0.0),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to train, text that takes seconds to prepare in small steps, and the store of a run that was not cut."""
    folder = tmp_path_factory.mktemp("world")
    save_tiny_model(folder / "student", num_hidden_layers=1)
    source = write_source(folder / "text.jsonl", documents(20_000))
    prepare(data_config(source), folder / "student", folder / "uncut", visible=False)
    return folder


@pytest.fixture
def command(world: Path, tmp_path: Path) -> Iterator[Running]:
    """`compress distill` with two tokenizer processes, in a session of its own."""
    models = ["--student", str(world / "student"), "--alpha=0", "--out", str(tmp_path)]
    options = ["--set=data.num_proc=2", "--set=data.seq_len=32", "--set=data.heldout_sequences=4"]
    running = warm().start(SMALL_STEPS, "distill", *models, "--data", str(world / "text.jsonl"), *options)
    yield running
    with contextlib.suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)
    running.wait()


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def workers_of(command: Running) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(command.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [child] if "spawn_main" in " ".join(child.cmdline()) else []
    return found


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until_saved(folder: Path) -> None:
    wait_until((folder / "data.partial" / "state.json").is_file)


def check_the_next_run(world: Path, folder: Path) -> None:
    store = prepare(data_config(world / "text.jsonl"), world / "student", folder / "data", visible=False)
    assert store.fingerprint == TokenStore.open(world / "uncut").fingerprint


@pytest.mark.faults(8)
@pytest.mark.parametrize(("name", "early"), [("SIGTERM", True), ("SIGTERM", False), ("SIGINT", True)])
def test_a_signal_to_the_whole_group_saves(
    world: Path, tmp_path: Path, command: Running, name: str, early: bool
) -> None:
    """As a terminal, a service manager or a scheduler sends it; `early`: while the processes are starting."""
    wait_until(lambda: workers_of(command))
    if not early:
        wait_until_saved(tmp_path)
    workers = workers_of(command)
    os.killpg(command.pid, getattr(signal, name))
    said = command.wait(PATIENCE_S).stderr
    assert command.returncode == 75, said
    assert f"Stopped by {name}" in said
    assert (tmp_path / "data.partial" / "state.json").is_file()
    assert all(map(has_ended, workers))
    check_the_next_run(world, tmp_path)


@pytest.mark.faults(1)
def test_processes_end_with_a_command_that_is_killed(world: Path, tmp_path: Path, command: Running) -> None:
    wait_until_saved(tmp_path)
    workers = workers_of(command)
    assert workers
    command.kill()
    wait_until(lambda: all(map(has_ended, workers)))
    check_the_next_run(world, tmp_path)


def test_a_process_that_is_killed_ends_the_command_and_not_what_was_saved(
    world: Path, tmp_path: Path, command: Running
) -> None:
    wait_until_saved(tmp_path)
    workers = workers_of(command)
    workers[0].kill()
    said = command.wait(PATIENCE_S).stderr
    assert command.returncode == 1, said
    assert all(map(has_ended, workers))
    assert (tmp_path / "data.partial" / "state.json").is_file()
    check_the_next_run(world, tmp_path)
