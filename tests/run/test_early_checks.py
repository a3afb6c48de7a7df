"""What can be known of a recipe is said at its start, by the run and the dry run alike, before anything is made."""

import re
from pathlib import Path

import pytest
from early_checks import EARLY, LATER, PAGE, keys, page
from helpers import run_cli
from recipe_world import make_run_world

from compress.base.errors import UsageError
from compress.run.layout import Layout
from compress.run.pipeline import look_ahead, resolve_paths
from compress.run.recipe import Recipe, load_recipe

EXAMPLES = [(key, *example) for key, entry in EARLY.items() for example in entry.examples]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = make_run_world(tmp_path_factory.mktemp("world"))
    (world / "broken").mkdir()
    (world / "broken" / "a.yaml").write_text("task: fine\ndataset_path: [org\n")
    return world


def load(world: Path, assignments: tuple[str, ...]) -> Recipe:
    places = {"{text}": world / "text.jsonl", "{tasks}": world / "tasks", "{broken}": world / "broken"}
    changes = []
    for change in assignments:
        for name, path in places.items():
            change = change.replace(name, str(path))
        changes.append(change)
    return load_recipe(world / "recipe.yaml", [each.replace(":", ": ") if "{" in each else each for each in changes])


@pytest.mark.parametrize(("key", "assignments", "words"), EXAMPLES, ids=[f"{e[0]}-{e[2][:12]}" for e in EXAMPLES])
def test_each_refusal_comes_before_anything_is_made(
    key: str, assignments: tuple[str, ...], words: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    recipe = resolve_paths(load(world, assignments), tmp_path / "run")
    said = []
    for download in (True, False):
        outlook = look_ahead(recipe, Layout(tmp_path / "run"), (), download=download)
        said.append([re.sub("[0-9.]+ GiB free", "little free", str(fault)) for fault in outlook.faults.found])
    assert any(words in fault for fault in said[0]), said[0]
    assert said[0] == said[1]
    assert list(tmp_path.iterdir()) == []


def test_a_good_recipe_is_not_refused(world: Path, tmp_path: Path) -> None:
    outlook = look_ahead(load(world, ()), Layout(tmp_path / "run"), (), download=True)
    assert [str(fault) for fault in outlook.faults.found] == []


@pytest.mark.parametrize("key", [key for key, _ in keys()])
def test_a_value_of_another_kind_is_refused_when_it_is_read(key: str, world: Path) -> None:
    if key in ("teacher.scratch.architecture", "teacher.scratch.tokenizer", "sweep.grid"):
        pytest.skip("a mapping, or part of one")
    with pytest.raises(UsageError, match=rf"--set {key}=.*{key}"):
        load_recipe(world / "recipe.yaml", [f"{key}={{a: [b]}}"])


WRONG = ["prune.keep=uniform:9", "data.text_column=body", "distill.batch_tokens=32", "eval.device=gpu"]
WRONG += ["eval.tasks=[tiny_choise]", "distill.trackers=[wandb]"]


@pytest.mark.parametrize("wrong", [WRONG, WRONG[1:], WRONG[2:3], ["distill.tokens=9k", "data.tokens=2k"]], ids=len)
def test_everything_is_said_at_once_by_the_run_and_the_dry_run(wrong: list[str], world: Path, tmp_path: Path) -> None:
    """Four steps with a fault each: none hides another, whether or not there is a plan."""
    command = ["run", str(world / "recipe.yaml"), "--out", str(tmp_path / "run"), *(f"--set={each}" for each in wrong)]
    run, dry = run_cli(*command), run_cli(*command, "--dry-run")
    assert (run.returncode, dry.returncode) == (2, 2)
    assert run.stderr == dry.stderr
    assert len(run.stderr.splitlines()) == (1 if "data.tokens=2k" in wrong else len(wrong))
    assert list(tmp_path.iterdir()) == []


def test_the_commands_ask_the_same(world: Path, tmp_path: Path) -> None:
    data = f"--data={world}/text.jsonl"
    models = [f"--student={world}/teacher", f"--teacher={world}/teacher"]
    options = ["--set=data.text_column=body", "--set=distill.batch_tokens=32", "--set=distill.trackers=[wandb]"]
    done = run_cli("distill", *models, data, "--set=data.seq_len=64", *options, "--out", str(tmp_path / "run"))
    assert len(done.stderr.splitlines()) == 3
    measured = ["--layers=9", "--by=taylor", "--calibration=/nowhere.txt", "--set=prune.device=gpu"]
    for more in ([], ["--dry-run"]):
        done = run_cli("prune", f"{world}/teacher", str(tmp_path / "out"), *measured, *more)
        assert len(done.stderr.splitlines()) == 3, done.stderr
    done = run_cli("eval", f"{world}/teacher", "--tasks=tiny_choise", "--set=eval.device=gpu", "--text=/nowhere.txt",
                   "--out", str(tmp_path / "e.json"))  # fmt: skip
    assert len(done.stderr.splitlines()) == 3, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_more_tokens_for_a_finished_run_are_refused_once(world: Path, tmp_path: Path) -> None:
    command = [
        "distill",
        f"--student={world}/teacher",
        "--alpha=0",
        f"--data={world}/text.jsonl",
        "--set=data.seq_len=64",
    ]
    command += ["--set=data.heldout_sequences=4", "--set=distill.batch_tokens=512", "--out", str(tmp_path / "run")]
    assert run_cli(*command, "--tokens=1k").returncode == 0
    done = run_cli(*command, "--tokens=2k")
    assert done.returncode == 2
    for step in ("data: ", "distill: "):
        assert sum(line.removeprefix("Error: ").startswith(step) for line in done.stderr.splitlines()) == 1


def test_the_page_has_every_key() -> None:
    known = {key for key, _ in keys()}
    assert set(EARLY) <= known
    assert set(LATER) <= known
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tests/early_checks.py"
