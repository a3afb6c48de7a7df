"""Nothing of the user's is written over: a command whose output is neither free nor its own does nothing at all."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from earlier_runs import unpack
from helpers import run_cli
from recipe_world import make_run_world

from compress.report import write_report
from compress.report.compare import compare_models
from compress.run.layout import Layout
from compress.run.pipeline import look_ahead, resolve_paths
from compress.run.recipe import is_resolved, load_recipe

QUICK = ("--set", "eval.speed=false", "--set", "eval.samples=0")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With `own/`, the user's, in which nothing may change."""
    world = make_run_world(tmp_path_factory.mktemp("world"))
    own = world / "own"
    (own / "model").mkdir(parents=True)
    for path in (world / "teacher").iterdir():
        if path.is_file():
            (own / "model" / path.name).write_bytes(path.read_bytes())
    (own / "notes.txt").write_text("mine")
    (own / "numbers.json").write_text('{"model": "m", "tasks": {}}')
    (own / "keep.items.jsonl").write_text('{"item": 1}\n')
    (own / "journal.json.journal").mkdir()
    (own / "journal.json.journal" / "diary.txt").write_text("mine")
    (own / "linked.json").symlink_to("model/config.json")
    (own / "nowhere.json").symlink_to("absent.json")
    os.mkfifo(own / "pipe")
    (own / "page").mkdir()
    (own / "page" / "compare.md").write_text("# My comparison\n")
    (own / "ranked.ranking").mkdir()
    (own / "ranked.ranking" / "thesis.tex").write_text("mine")
    for name in ("recipe.yaml", "report.md", "report.json", "flips.jsonl", "redo.json", "old"):
        (own / f"run-{name}").mkdir()
        (own / f"run-{name}" / name).write_text("name: mine\n")
    for name in ("data", "train", "student", "student-init", "data.partial"):
        (own / f"run-{name}" / name).mkdir(parents=True)
        (own / f"run-{name}" / name / "index.json").write_text('{"format": "mine"}')
        (own / f"run-{name}" / name / "thesis.tex").write_text("mine")
    (own / "run-eval" / "eval").mkdir(parents=True)
    (own / "run-eval" / "eval" / "teacher.json").write_text('{"manifest": "mine"}')
    (own / "run-link").symlink_to("page")
    return world


def state(folder: Path) -> dict[str, str | bytes]:
    """All there is below a folder: what files hold, and where links lead."""
    found: dict[str, str | bytes] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = path.read_bytes() if path.is_file() else "no file"
    return found


EVAL = ["eval", "{}/teacher", *QUICK, "--out"]
PRUNE = ["prune", "{}/teacher"]
RANKED = ["--layers=2", "--rank-after=2k", "--calibration={}/text.jsonl", "--set=data.seq_len=64"]
RUN = ["run", "{}/recipe.yaml", "--out"]
DISTILL = ["distill", "--student={}/teacher", "--alpha=0", "--data={}/text.jsonl", "--set=data.seq_len=64", "--out"]
CASES = {
    "a model's config": [*EVAL, "{}/own/model/config.json"],
    "a model's weights": [*EVAL, "{}/own/model/model.safetensors"],
    "a new file in a model's folder": [*EVAL, "{}/own/model/generation_config2.json"],
    "a text": [*EVAL, "{}/own/notes.txt"],
    "a JSON that is almost one": [*EVAL, "{}/own/numbers.json"],
    "a recipe": [*EVAL, "{}/recipe.yaml"],
    "a link": [*EVAL, "{}/own/linked.json"],
    "a link to nothing": [*EVAL, "{}/own/nowhere.json"],
    "a pipe": [*EVAL, "{}/own/pipe"],
    "a device": [*EVAL, "/dev/full"],
    "a folder": [*EVAL, "{}/own"],
    "a path through a file": [*EVAL, "{}/own/notes.txt/eval.json"],
    "items beside it": [*EVAL, "{}/own/keep.json"],
    "a journal beside it": [*EVAL, "{}/own/journal.json"],
    "a page of a comparison": ["compare", "{}/eval.json", "--out", "{}/own/page"],
    "a comparison in a model's folder": ["compare", "{}/eval.json", "--out", "{}/own/model"],
    "a student over a folder": [*PRUNE, "{}/own/page"],
    "a student over a file": [*PRUNE, "{}/own/notes.txt"],
    "a student over a link": [*PRUNE, "{}/own/run-link"],
    "one of a family": [*PRUNE, "{}/own/model/..", "--keep=page", "--keep=0"],
    "a ranking": [*PRUNE, "{}/own/ranked", *RANKED],
    "a run's recipe": [*RUN, "{}/own/run-recipe.yaml"],
    "a run's page": [*RUN, "{}/own/run-report.md"],
    "a run's report": [*RUN, "{}/own/run-report.json"],
    "a run's flips": [*RUN, "{}/own/run-flips.jsonl"],
    "a run's redo.json": [*RUN, "{}/own/run-redo.json"],
    "a file where the old goes": [*RUN, "{}/own/run-old"],
    "a run's data": [*RUN, "{}/own/run-data"],
    "a run's unfinished data": [*RUN, "{}/own/run-data.partial"],
    "a run's checkpoints": [*RUN, "{}/own/run-train"],
    "a run's student": [*RUN, "{}/own/run-student"],
    "a run's cut": [*RUN, "{}/own/run-student-init"],
    "a run's evaluation": [*RUN, "{}/own/run-eval"],
    "a run's evaluation, asked to redo it": [*RUN, "{}/own/run-eval", "--redo=eval"],
    "a run in a model's folder": [*RUN, "{}/own/model"],
    "a run over a file": [*RUN, "{}/own/notes.txt"],
    "a run over a link": [*RUN, "{}/own/run-link"],
    "the recipe's own folder": [*RUN, "{}"],
    "the demo": ["demo", "--out", "{}/own/run-data"],
    "a distillation's data": [*DISTILL, "{}/own/run-data"],
    "a distillation's checkpoints": [*DISTILL, "{}/own/run-train"],
    "a distillation's student": [*DISTILL, "{}/own/run-student"],
    "a distillation in a model's folder": [*DISTILL, "{}/own/model"],
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_the_users_stays(name: str, world: Path) -> None:
    before = state(world)
    done = run_cli(*(word.replace("{}", str(world)) for word in CASES[name]))
    assert done.returncode == 2, done.stderr
    assert "fault of the tool" not in done.stderr
    assert state(world) == before


def test_all_that_is_in_the_way_is_named_at_once(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("data", "student"):
        (run / name).mkdir(parents=True)
        (run / name / "x").write_text("mine")
    (run / "report.md").write_text("mine")
    for more in ([], ["--dry-run"]):
        done = run_cli("run", str(world / "recipe.yaml"), "--out", str(run), *more)
        assert done.returncode == 2
        assert all(f"{run / name} is" in done.stderr for name in ("data", "student", "report.md")), done.stderr
    assert sorted(path.name for path in run.rglob("*")) == ["data", "report.md", "student", "x", "x"]


def test_a_run_folder_is_one_recipes(world: Path, tmp_path: Path) -> None:
    command = ["run", str(world / "recipe.yaml"), "--out", str(tmp_path / "run"), "--set=eval.tasks=[]"]
    command += ["--set=eval.speed=false", "--set=distill.tokens=1k"]
    done = run_cli(*command)
    assert done.returncode == 0, done.stderr
    before = state(tmp_path)
    other = run_cli(*command, "--set=name=other")
    assert other.returncode == 2
    assert "is the folder of a run of the recipe 'tiny', and this one is 'other'" in other.stderr
    assert state(tmp_path) == before
    for again in (command, ["report", str(tmp_path / "run")]):  # its own it replaces
        done = run_cli(*again)
        assert done.returncode == 0, done.stderr


def test_a_run_is_not_part_of_the_text_that_it_reads(world: Path) -> None:
    (world / "texts").mkdir(exist_ok=True)
    (world / "texts" / "a.jsonl").write_bytes((world / "text.jsonl").read_bytes())
    changes = [f"data.dataset={world / 'texts'}", "eval.tasks=[]"]
    recipe = load_recipe(world / "recipe.yaml", changes)
    for run, fault in ((world / "texts" / "run", True), (world / "beside", False)):
        outlook = look_ahead(resolve_paths(recipe, run), Layout(run), (), download=False)
        assert any("all of which is read as text" in str(found) for found in outlook.faults.found) == fault


def test_results_of_the_same_kind_are_replaced(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "eval.json"
    command = ["eval", str(world / "teacher"), "--out", str(out), "--tasks=tiny_choice", *QUICK]
    command += [f"--datasets-root={world / 'hub'}", f"--set=eval.task_folder={world / 'tasks'}"]
    first, second = (run_cli(*command, "--limit", limit) for limit in ("2", "3"))
    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    assert json.loads(out.read_text())["tasks"]["tiny_choice"]["n"] == 3
    for _ in range(2):
        compare_models([f"a={out}"], tmp_path / "page")
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == [
        "compare.html",
        "compare.json",
        "compare.md",
        "flips.jsonl",
    ]
    (tmp_path / "page" / "compare.md").write_text("# My own words\n")
    assert run_cli("compare", str(out), "--out", str(tmp_path / "page")).returncode == 2
    assert (tmp_path / "page" / "compare.md").read_text() == "# My own words\n"


def test_a_cut_between_the_files_of_a_report_leaves_no_strangers(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever file is the last that was written, the next call takes them all for its own."""
    command = ["eval", str(world / "teacher"), "--out", str(tmp_path / "eval.json"), *QUICK]
    assert run_cli(*command).returncode == 0
    for count in range(1, 4):
        page = tmp_path / f"page-{count}"
        left = [count]

        def replace(source: Path, target: Path, real: Callable[..., None] = os.replace, left: list[int] = left) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            real(source, target)

        monkeypatch.setattr(os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            compare_models([str(tmp_path / "eval.json")], page)
        monkeypatch.undo()
        compare_models([str(tmp_path / "eval.json")], page)
        assert {path.suffix for path in page.glob("compare.*")} >= {".json", ".md", ".html"}


@pytest.mark.parametrize("name", ["finished", "scratch", "ranked", "killed", "stopped", "preparing", "ranking"])
def test_what_earlier_versions_left_is_ours(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = unpack(name, tmp_path)
    monkeypatch.chdir(folder)
    recipe = load_recipe("recipe.yaml")
    assert is_resolved(Path("run/recipe.yaml"))
    assert not is_resolved(Path("recipe.yaml"))
    outlook = look_ahead(resolve_paths(recipe, Path("run")), Layout(Path("run")), (), download=False)
    assert [str(fault) for fault in outlook.faults.found] == []
    if name == "finished":
        write_report(Path("run"))


def test_faults_of_outputs_are_gathered_with_others(world: Path, tmp_path: Path) -> None:
    """An output in the way does not hide what is wrong with the rest."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("")
    done = run_cli("prune", str(world / "teacher"), str(tmp_path / "out"), "--keep", "9")
    assert "not empty" in done.stderr
    assert "--keep 9" in done.stderr
