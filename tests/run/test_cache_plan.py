"""What a dry run says of a cache of the teacher: bytes as they come to lie on the disk, and when it pays."""

from pathlib import Path

import pytest
from recipe_world import make_run_world

from compress.data import TokenStore, prepare
from compress.distill.teachers.caching import make_cache
from compress.report.tables.making import training
from compress.run.plan import RecipePlan, plan_run
from compress.run.recipe import load_recipe

CHANGES = ("distill.tokens=null", "distill.precision=fp32", "distill.epochs=2", "data.tokens=8k", "eval.tasks=[]")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run_world(tmp_path_factory.mktemp("world"))


def planned(world: Path, *changes: str) -> RecipePlan:
    recipe = load_recipe(world / "recipe.yaml", [*CHANGES, *changes])
    plan, outlook = plan_run(recipe, world / "nowhere", flops_per_s=1e9)
    outlook.refuse()
    assert plan is not None
    return plan


@pytest.mark.parametrize("kind", ["hidden", "hidden, rows: int8", "topk"])
def test_bytes_are_planned_as_they_come(world: Path, kind: str, tmp_path: Path) -> None:
    recipe = load_recipe(world / "recipe.yaml", [*CHANGES, f"teacher.cache={{kind: {kind}}}"])
    plan = planned(world, f"teacher.cache={{kind: {kind}}}").cache
    assert plan is not None
    assert recipe.teacher.cache is not None
    store: TokenStore = prepare(recipe.data, world / "teacher", tmp_path / "data", visible=False)
    assert plan.tokens == (store.num_rows + store.num_heldout) * store.seq_len
    teacher, data = world / "teacher", tmp_path / "data"
    cache = make_cache(recipe.teacher.cache, recipe.distill, teacher=teacher, data=data, out=tmp_path / "cache")
    files = [path for path in cache.path.iterdir() if path.name != "index.json"]
    header = 8 + 100  # of the safetensors file
    assert plan.bytes <= sum(path.stat().st_size for path in files) <= plan.bytes + header
    assert cache.describe()["bytes_per_token"] == plan.bytes_per_token
    words = dict(training({"train": {"cache": cache.describe()}}).rows)["Taught by"]
    assert f"{plan.bytes_per_token:.0f} bytes a token" in words


def test_the_forward_pass_is_paid_for_once(world: Path) -> None:
    live, cached = planned(world), planned(world, "teacher.cache={kind: hidden}")
    assert live.cache is None
    assert cached.cache is not None
    saved = live.distill.flops_per_token - cached.distill.flops_per_token
    assert saved == pytest.approx(cached.cache.flops_per_token)
    assert live.distill.memory_bytes["teacher"] > cached.distill.memory_bytes["teacher"]
    hours = (cached.cache.tokens * cached.cache.flops_per_token + cached.distill.flops) / 1e9 / 3600
    assert cached.to_dict()["hours"] == pytest.approx(hours)
    assert "cache the teacher: hidden, " in cached.describe()
    tokens = cached.cache.tokens
    assert "it pays in this run, which reads the text 2 times" in cached.cache.describe(2 * tokens, 1e9)
    assert "it pays from 3 such runs or 3-fold epochs on" in cached.cache.describe(tokens * 2 // 5, 1e9)
