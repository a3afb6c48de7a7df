"""SIGTERM and Ctrl-C in every stage of `compress run`: exit 75 within the grace, and nothing is lost."""

import json
import signal
from pathlib import Path

import pytest
from commands import Commands
from fault_injection import Signal
from run_world import SMALL_STEPS, differences, lasting

from compress.base.errors import InterruptedRun
from compress.base.signals import stop_on_signal

GRACE_S = 20.0
"""One step, one save and the end of a process: a second for models this small, far more when the machine is busy."""
STAGES = {
    "pruning": Signal(at=("compress.prune.under_way:WeightsUnderWay.finish",), after=True),
    "checking the student": Signal(at=("compress.prune.check:check_student",)),
    "preparing data": Signal(at=("compress.data.store.preparation:Preparation._take_document",), call=20),
    "publishing the data": Signal(at=("os:replace",), path="*/data"),
    "loading models": Signal(at=("compress.distill.opening:load_student",)),
    "training": Signal(at=("compress.distill.loop.train:learning_rate",), call=2),
    "in a save": Signal(at=("safetensors.torch:serialize_file",), path="*/optimizer*"),
    "publishing the student": Signal(at=("compress.distill.publish:copy_side_files",)),
    "evaluation": Signal(at=("compress.evaluate.evaluation:heldout_scores",), call=2),
    "report": Signal(at=("compress.run.pipeline:write_report",)),
}


@pytest.mark.faults(8)
def test_stopped_in_every_stage(commands: Commands, recipe: Path, finished: Path, tmp_path: Path) -> None:
    """One run, stopped ten times; every signal comes twice at once, which harms nothing."""
    arguments = ("run", str(recipe), "--out", str(tmp_path / "run"))
    for number, (stage, fault) in enumerate(STAGES.items()):
        names = ("SIGTERM", "SIGINT") if number % 2 else ("SIGINT", "SIGTERM")
        twice = Signal(at=fault.at, path=fault.path, call=fault.call, after=fault.after, signals=(names[0], names[0]))
        done = commands.run([*SMALL_STEPS, twice], *arguments)
        assert done.struck, (stage, done.stderr)
        assert done.returncode == 75, (stage, done.stderr)
        assert "again to " in done.said, (stage, done.stderr)
        assert "Traceback" not in done.stderr, stage
        assert done.seconds_after < GRACE_S, stage
        if stage in ("training", "in a save"):
            assert "all is in" in done.said
            assert names[0] in done.said
    assert commands.run(SMALL_STEPS, *arguments).returncode == 0
    assert not list((tmp_path / "run").rglob("*partial"))
    assert differences(lasting(tmp_path / "run"), lasting(finished)) == []


@pytest.mark.faults(8)
def test_stopped_in_the_last_step_and_where_a_heldout_loss_was_due(
    commands: Commands, recipe: Path, finished: Path, tmp_path: Path
) -> None:
    """What there was no time for is measured by the next run; a stop that comes too late is obeyed after the step."""
    arguments = ("run", str(recipe), "--out", str(tmp_path / "run"))
    steps = json.loads((finished / "student" / "distill.json").read_text())["steps"]
    for call in (3, steps - 3):
        stop = Signal(at=("compress.distill.loop.train:learning_rate",), call=call, signals=("SIGTERM",))
        done = commands.run([*SMALL_STEPS, stop], *arguments)
        assert done.struck
        assert done.returncode == 75, done.stderr
        assert not (tmp_path / "run" / "eval").exists()
    assert commands.run(SMALL_STEPS, *arguments).returncode == 0
    assert differences(lasting(tmp_path / "run"), lasting(finished)) == []


@pytest.mark.faults(8)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_nobody_acted_on_is_raised_again(number: signal.Signals) -> None:
    def ignore() -> None:
        with stop_on_signal() as stop:
            signal.raise_signal(number)
            assert stop

    def obey() -> None:
        with stop_on_signal():
            signal.raise_signal(number)
            raise InterruptedRun("saved")

    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            ignore()
        with pytest.raises(InterruptedRun):
            obey()
        with stop_on_signal() as stop:
            assert not stop
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
