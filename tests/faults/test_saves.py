"""A save that is killed, or meets a full disk, in each of its phases."""

import re
import shutil
from pathlib import Path

import pytest
from commands import Commands
from fault_injection import FailWrite, Fault, FullDisk, Signal
from run_world import metrics

from compress.base.disk import sha256_tree

EVENTS = ("os:mkdir", "safetensors.torch:serialize_file", "os:fsync", "os:replace", "pathlib:Path.rename")
"""Whatever a save does to the disk; `serialize_file` writes a whole file in native code."""
SECOND_SAVE = "*/checkpoints/step-4*"


class Training:
    """`compress distill` of six steps that saves after every second; `run` returns what came of it."""

    def __init__(self, commands: Commands, student: Path, teacher: Path, store: Path, out: Path) -> None:
        self._commands, self.out, self.checkpoints = commands, out, out / "train" / "checkpoints"
        options = [
            "batch_tokens=128",
            "tokens=768",
            "lr=3e-3",
            "log_every=1",
            "heldout_sequences=4",
            "heldout_every=5%",
        ]
        options += ["checkpoint_every=2", "keep_checkpoints=1"]
        self._arguments = ["distill", "--student", str(student), "--teacher", str(teacher), "--data", str(store)]
        self._arguments += ["--out", str(out), *(f"--set=distill.{option}" for option in options)]

    def run(self, *faults: Fault) -> str:
        """Run, or go on; returns what was said, after the exit status."""
        done = self._commands.run(faults, *self._arguments)
        assert done.struck == bool(faults), done.stderr
        assert "Traceback" not in done.stderr
        return f"{done.returncode} {done.said}"

    def saved(self) -> list[str]:
        return sorted(path.name for path in self.checkpoints.iterdir())


@pytest.fixture
def training(commands: Commands, recipe: Path, student: Path, store: Path, tmp_path: Path) -> Training:
    return Training(commands, student, recipe.parent / "teacher", store, tmp_path / "run")


@pytest.fixture(scope="session")
def whole(commands: Commands, recipe: Path, student: Path, store: Path) -> Path:
    """The same training, uninterrupted."""
    training = Training(commands, student, recipe.parent / "teacher", store, recipe.parent / "whole")
    assert training.run().startswith("0 ")
    return training.out


def assert_same(found: Path, expected: Path) -> None:
    assert (found / "student/model.safetensors").read_bytes() == (expected / "student/model.safetensors").read_bytes()
    assert metrics(found) == metrics(expected)


def kill_and_resume(training: Training, whole: Path, fault: Signal) -> None:
    """The kill leaves at most one save that is not whole; the next run names it and takes the last whole one."""
    assert training.run(fault).startswith("-9 ")
    left = training.saved()
    complete = [name for name in left if re.fullmatch("step-[0-9]+", name)]
    assert complete
    said = training.run()
    assert said.startswith("0 ")
    last = max(complete, key=lambda name: int(name[5:]))
    assert f"Continuing from {training.checkpoints / last}:" in said
    for name in set(left) - set(complete):
        assert f"Skipping {training.checkpoints / name}" in said
    assert training.saved() == ["step-6"]
    assert_same(training.out, whole)


PHASES = {
    "the weights are half written": Signal(at=EVENTS[1:2], path=SECOND_SAVE + "/model*"),
    "the weights are written, the moments are not": Signal(at=EVENTS[1:2], path=SECOND_SAVE + "/model*", after=True),
    "all is written but the manifest": Signal(at=("os:replace",), path=SECOND_SAVE + "/manifest*"),
    "all is written and not yet renamed": Signal(at=("os:replace",), path="*/checkpoints/step-4"),
    "it is renamed, older ones are not yet deleted": Signal(
        at=("os:replace",), path="*/checkpoints/step-4", after=True
    ),
    "an older one is half deleted": Signal(at=("pathlib:Path.rename",), path="*/checkpoints/step-2", after=True),
}


@pytest.mark.faults(1, 3)
@pytest.mark.parametrize("phase", PHASES)
def test_killed_in_a_phase_of_a_save(training: Training, whole: Path, phase: str) -> None:
    kill_and_resume(training, whole, PHASES[phase])


@pytest.mark.slow
@pytest.mark.faults(3)
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_every_event_of_a_save(training: Training, whole: Path, after: bool) -> None:
    """Before or after each folder made, file written, file forced to disk, and rename."""
    for call in range(1, 100):
        shutil.rmtree(training.out, ignore_errors=True)
        fault = Signal(at=EVENTS, path=SECOND_SAVE, call=call, after=after)
        done = training._commands.run([fault], *training._arguments)
        if not done.struck:
            break
        shutil.rmtree(training.out)
        kill_and_resume(training, whole, fault)
    assert call > 10


FULL = {
    "no room for the weights": FullDisk(file_bytes=20_000, at=EVENTS[1:2], path=SECOND_SAVE + "/model*"),
    "no room for the moments": FullDisk(file_bytes=20_000, at=EVENTS[1:2], path=SECOND_SAVE + "/optimizer*"),
    "no room for the manifest": FailWrite(path=SECOND_SAVE + "/manifest*"),
    "no room for the metrics": FailWrite(path="*/train/metrics.jsonl", call=7),
}


@pytest.mark.faults(4)
@pytest.mark.parametrize("phase", FULL)
def test_a_full_disk_during_a_save(training: Training, whole: Path, phase: str) -> None:
    said = training.run(FULL[phase])
    assert said.startswith("1 ")
    assert "space" in said
    assert str(training.checkpoints / "step-4" if "metrics" not in phase else "metrics.jsonl") in said
    assert training.saved() == ["step-2"]
    hashes = sha256_tree(training.checkpoints)
    assert "step-2/manifest.json" in hashes
    said = training.run()
    assert said.startswith("0 ")
    assert f"Continuing from {training.checkpoints / 'step-2'}: 2 of 6" in said
    assert_same(training.out, whole)
