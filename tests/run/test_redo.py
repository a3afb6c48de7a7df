"""Nothing finished is destroyed: a changed setting stops the run, `redo` moves aside, and a kill loses nothing."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from earlier_runs import content, unpack

from compress.base import disk
from compress.base.errors import UsageError
from compress.cli import cli
from compress.run import redo
from compress.run.pipeline import run_recipe
from compress.run.recipe import Recipe, load_recipe
from compress.verify import verify_run

CHANGED = {
    "prune.keep=0,1": ("prune", "student-init/prune.json was made otherwise: keep was \"alternate\" and is \"0,1\""),
    "data.seed=3": ("data", "data/index.json was made otherwise: seed was 0 and is 3"),
    "distill.lr=2e-3": ("distill", "student/distill.json was made otherwise: lr was 0.003 and is 0.002"),
    "eval.limit=3": ("eval", "eval/teacher.json was made otherwise: limit was null and is 3"),
    "eval.speed_repeats=3": ("eval", "eval/speed.json was made otherwise: speed_repeats was 1 and is 3"),
}  # fmt: skip


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run in `run/`; the paths of its recipe are relative to the folder."""
    folder = unpack("finished", tmp_path)
    monkeypatch.chdir(folder)
    return folder


def recipe(*changes: str) -> Recipe:
    return load_recipe("recipe.yaml", changes)


@pytest.mark.parametrize("change", CHANGED)
def test_a_changed_setting_stops_the_run_before_anything_is_touched(world: Path, change: str) -> None:
    before = content(world)
    step, difference = CHANGED[change]
    with pytest.raises(UsageError) as refusal:
        run_recipe(recipe(change), "run")
    assert difference in str(refusal.value)
    assert f"add --redo {step}: what is there moves to run/old" in str(refusal.value)
    assert content(world) == before


def test_all_that_is_no_longer_current_is_said_at_once(world: Path) -> None:
    before = content(world)
    with pytest.raises(UsageError) as refusal:
        run_recipe(recipe("distill.lr=2e-3", "eval.limit=3"), "run")
    text = str(refusal.value)
    assert all(f"{name}: run/" in text for name in ("distill", "eval teacher", "eval student-init", "eval student"))
    assert "add --redo distill --redo eval: what is there" in text
    with pytest.raises(UsageError, match=r"^distill: run/student/distill.json was made otherwise"):
        run_recipe(recipe("distill.lr=2e-3", "eval.limit=3"), "run", redo=["eval"])
    assert content(world) == before
    with pytest.raises(UsageError, match="--redo heal: this run has no such step; choose from prune, data, distill"):
        run_recipe(recipe(), "run", redo=["heal"])


def test_redo_moves_the_old_result_aside_and_what_follows_from_it(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(world / "run")
    run_recipe(recipe("distill.lr=2e-3"), "run", redo=["distill"])
    told = capsys.readouterr().err
    after = content(world / "run")
    old = {path.split("/", 2)[2]: data for path, data in after.items() if path.startswith("old/")}
    moved = [name for name in before if name.startswith(("student/", "train/", "eval/student.", "eval/speed"))]
    assert moved
    assert {name: old[name] for name in moved} == {name: before[name] for name in moved}
    assert set(old) == {*moved, "recipe.yaml"}
    kept = [name for name in before if name.startswith(("student-init/", "data/", "eval/teacher.items"))]
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert "Doing anew: distill. What follows if it changes: eval student, speed." in told
    assert "run/old/distill-" in told
    assert not (world / "run" / "redo.json").exists()
    assert {check.status for check in verify_run(world / "run")} == {"ok"}
    run_recipe(recipe("distill.lr=2e-3"), "run")
    assert "distill: done, unchanged." in capsys.readouterr().err


def test_what_is_current_is_done_anew_when_asked_and_only_once_for_one_redo(world: Path) -> None:
    """The same command again, after a run that did not come to its end, goes on with what it began."""
    run_recipe(recipe(), "run", redo=["eval"])
    assert len(list((world / "run" / "old").glob("eval-*/eval/*.json"))) == 4
    begun = redo.Redo(redo.Layout(Path("run")), "2026-01-01T00.00.00", ["eval"], ["speed"], ["speed"])
    begun.save()
    run_recipe(recipe(), "run", redo=["eval"])
    assert len(list((world / "run" / "old").glob("eval-*/eval/*.json"))) == 4
    assert not (world / "run" / "redo.json").exists()


def test_a_dry_run_says_where_each_step_stands(world: Path) -> None:
    before = content(world)
    asked = ["run", "recipe.yaml", "--out", "run", "--dry-run", "--json"]
    changed = [*asked, "--set", "distill.lr=2e-3"]
    for command, student, refused in ((asked, "done", False), (changed, "changed", True)):
        done = CliRunner().invoke(cli, command)
        steps = json.loads(done.stdout)["steps"]
        assert steps.pop("distill") == student
        assert set(steps.values()) == {"done"}
        assert isinstance(done.exception, UsageError) == refused
    anew = json.loads(CliRunner().invoke(cli, [*changed, "--redo", "distill"]).stdout)["steps"]
    assert anew["distill"] == "done anew"
    assert content(world) == before


ASKED = ["prune", "data", "distill", "eval"]


class Killed(BaseException):
    """The process ends here: nothing is tidied up."""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_kill_while_results_are_moved_aside_loses_nothing(
    world: Path, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: data for name, data in content(world / "run").items() if not name.startswith(("report", "flips"))}
    change = recipe("prune.keep=0,1", "data.seed=3", "distill.lr=2e-3", "eval.limit=3")
    real = {"rename": os.rename, "replace": os.replace}
    left = 0

    def struck(kind: str) -> Any:
        def call(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0 and not after:
                raise Killed
            done = real[kind](*arguments)
            if left == 0:
                raise Killed
            return done

        return call

    killed = 0
    for moment in (*range(1, 6), *range(1, 6), 7, 20, 40):
        left = moment
        with monkeypatch.context() as patch:
            patch.setattr(redo.os, "rename", struck("rename"))
            patch.setattr(disk.os, "replace", struck("replace"))
            try:
                _set_aside(change)
            except Killed:
                killed += 1
        kept = content(world / "run")
        found = {name.split("/", 2)[2] if name.startswith("old/") else name: data for name, data in kept.items()}
        assert {name: found.get(name) for name in before if name != "recipe.yaml"} == {
            name: data for name, data in before.items() if name != "recipe.yaml"
        }
    assert killed >= 8
    run_recipe(change, "run", redo=ASKED)
    assert {check.status for check in verify_run(world / "run")} == {"ok"}
    assert len(list((world / "run" / "old").iterdir())) == len(ASKED), "each was moved once"


def _set_aside(change: Recipe) -> None:
    """What `run_recipe(change, "run", redo=ASKED)` does before it makes anything."""
    from compress.run import pipeline, recipe_steps

    layout = redo.Layout(Path("run"))
    steps = recipe_steps.steps_of(pipeline.resolve_paths(change, Path("run")), layout, lambda *_: Path("teacher"))
    redo.begin(steps, layout, ASKED)


def test_each_file_is_hashed_once_a_run(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    read = disk._read_hash
    monkeypatch.setattr(disk, "_hashes", {})
    monkeypatch.setattr(disk, "_read_hash", lambda path, stop: reads.append(path.resolve()) or read(path, stop))
    time.sleep(0.15)  # what was written within a tick of the clock is not trusted to have been read whole
    run_recipe(recipe(), "run")
    assert len(reads) == len(set(reads)) > 10
    shutil.rmtree(world / "run" / "student")
    run_recipe(recipe(), "run")
    of_teacher = [path for path in reads if path.parent == world / "teacher"]
    assert len(of_teacher) == len(set(of_teacher)) > 2
