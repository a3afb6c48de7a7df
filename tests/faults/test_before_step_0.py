"""What would fail hours later fails before the first step, by the real command."""

import json
import shutil
from pathlib import Path

import pytest
from commands import Commands
from fault_injection import Signal
from run_world import SMALL_STEPS, lasting

SMALL = ("--set", "data.seq_len=32", "--set", "data.heldout_sequences=4", "--set", "distill.batch_tokens=128")
FIRST_STEP = Signal(at=("compress.distill.loop.train:learning_rate",))
"""A training that starts is killed, and so fails the test."""


def distill(recipe: Path, student: Path, out: str) -> tuple[str, ...]:
    world = recipe.parent
    models = ("--student", str(student), "--teacher", f"{world}/teacher", "--data", f"{world}/text")
    return ("distill", *models, "--out", out, *SMALL)


@pytest.mark.faults(24)
def test_a_bad_generation_config(commands: Commands, recipe: Path, student: Path, tmp_path: Path) -> None:
    model = shutil.copytree(student, tmp_path / "student")
    (model / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.5}))
    done = commands.run([FIRST_STEP], *distill(recipe, model, str(tmp_path / "run")))
    assert done.returncode == 3, done.stderr
    assert "generation_config.json contradicts itself" in done.said


@pytest.mark.faults(24)
@pytest.mark.parametrize("place", ["/proc/run", "FILE/run", "FILE", "FULL"])
def test_an_output_that_cannot_be_written_or_is_taken(
    commands: Commands, recipe: Path, student: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full" / "student").mkdir(parents=True)
    (tmp_path / "full" / "student" / "thesis.txt").write_text("years of work")
    out = place.replace("FILE", str(tmp_path / "file")).replace("FULL", str(tmp_path / "full"))
    done = commands.run([FIRST_STEP], *distill(recipe, student, out))
    assert done.returncode in (1, 2), done.stderr
    assert not done.struck
    assert "Traceback" not in done.stderr
    assert out.rpartition("/")[2] in done.said
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "full" / "student" / "thesis.txt").read_text() == "years of work"


@pytest.mark.faults(24)
def test_a_changed_recipe_cannot_continue_a_training(
    commands: Commands, recipe: Path, finished: Path, tmp_path: Path
) -> None:
    """What was begun with one learning rate is not finished with another; back with the old one, it is."""
    arguments = ("run", str(recipe), "--out", str(tmp_path / "run"))
    stop = Signal(at=FIRST_STEP.at, call=2, signals=("SIGTERM",))
    assert commands.run([*SMALL_STEPS, stop], *arguments).returncode == 75
    done = commands.run([*SMALL_STEPS, FIRST_STEP], *arguments, "--set", "distill.lr=1e-2")
    assert done.returncode == 2, done.stderr
    assert "lr was 0.003 and is 0.01" in done.said
    assert commands.run(SMALL_STEPS, *arguments).returncode == 0
    assert lasting(tmp_path / "run")["student"] == lasting(finished)["student"]
