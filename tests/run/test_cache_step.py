"""A recipe's cache of its teacher: a step of the run, from which the student is the one that a live teacher makes."""

import shutil
from pathlib import Path

import pytest
from recipe_world import make_run_world, run_to

from compress.base.disk import read_json, sha256_tree
from compress.base.errors import UsageError
from compress.run.pipeline import run_recipe
from compress.run.recipe import load_recipe
from compress.verify import verify_run

LEAN = ("eval.tasks=[]", "eval.speed=false", "eval.samples=0")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def cached(world: Path) -> Path:
    return run_to(world / "cached", world / "recipe.yaml", *LEAN, "teacher.cache={kind: hidden}")


def failed(run: Path) -> list[str]:
    return [check.name for check in verify_run(run) if check.status == "FAILED"]


def test_the_student_is_the_live_one_and_all_is_verified(world: Path, cached: Path) -> None:
    live = run_to(world / "live", world / "recipe.yaml", *LEAN)
    weights = [(run / "student" / "model.safetensors").read_bytes() for run in (live, cached)]
    assert weights[0] == weights[1]
    checks = {check.name: check for check in verify_run(cached)}
    assert {check.status for check in checks.values()} <= {"ok", "not checked"}
    assert checks["teacher-cache"].detail == "3 files match their SHA-256"
    assert checks["student: made from cache"].detail == "unchanged"
    assert failed(live) == []


def test_a_second_run_reads_the_same_cache(
    world: Path, cached: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sha256_tree(cached)
    shared = f"teacher.cache={{folder: {cached}/teacher-cache}}"
    recipe = load_recipe(world / "recipe.yaml", [*LEAN, shared, "distill.lr=2e-3"])
    run_recipe(recipe, tmp_path / "second")
    told = capsys.readouterr().err
    assert "cache: done, unchanged." in told
    assert "Running the teacher" not in told
    assert not (tmp_path / "second" / "teacher-cache").exists()
    assert failed(tmp_path / "second") == []
    assert sha256_tree(cached) == before
    with pytest.raises(UsageError, match=r"document_mask was false and is true"):
        run_recipe(load_recipe(world / "recipe.yaml", [*LEAN, shared, "distill.document_mask=true"]), tmp_path / "3")
    with pytest.raises(UsageError, match="lies outside of the run"):
        run_recipe(recipe, tmp_path / "second", redo=["cache"])
    assert sha256_tree(cached) == before


def test_a_cache_that_was_altered_is_found_and_made_anew_when_asked(world: Path, cached: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(cached, run)
    rows = run / "teacher-cache" / "rows-00000.bin"
    content = rows.read_bytes()
    rows.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    assert failed(run) == ["teacher-cache"]
    rows.write_bytes(content[:-1])
    recipe = load_recipe(run / "recipe.yaml")
    with pytest.raises(UsageError, match=r"rows-00000.bin has \d+ bytes.*(?s:.*)add --redo cache"):
        run_recipe(recipe, run)
    run_recipe(recipe, run, redo=["cache"])
    assert rows.read_bytes() == content
    assert failed(run) == []
    old = next((run / "old").glob("cache-*"))
    assert (old / "teacher-cache" / "index.json").is_file()


def test_going_from_a_cache_to_the_live_teacher_is_said(world: Path, cached: Path) -> None:
    recipe = load_recipe(cached / "recipe.yaml", ["teacher.cache=null"])
    with pytest.raises(UsageError, match=r"distill: .*the cache is another"):
        run_recipe(recipe, cached)
    assert read_json(cached / "student" / "distill.json")["cache"]["kind"] == "hidden"
