"""Targets: how many layers stay for a size or a speed, and what a run says of having reached it."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from helpers import run_cli
from recipe_world import make_run_world, run_to
from transformers import AutoConfig, AutoModelForCausalLM

from compress.base.disk import read_json, sha256_tree
from compress.base.errors import Faults, UsageError
from compress.evaluate import EvalConfig
from compress.model.facts import look_at_config
from compress.report.tables.target import target as target_table
from compress.run import target
from compress.run.pipeline import run_recipe
from compress.run.recipe import load_recipe
from compress.run.target import find_layers
from compress.run.target_config import TargetConfig
from compress.verify import verify_run

LEAN = ("eval.tasks=[]", "eval.speed=false", "eval.samples=0", "prune={}", "distill.tokens=2k")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run_world(tmp_path_factory.mktemp("world"))


def sizes(teacher: Path) -> list[int]:
    """Parameters of models of 1, 2, ... layers, as transformers makes them."""
    found = []
    for layers in range(1, 5):
        config = AutoConfig.from_pretrained(teacher, num_hidden_layers=layers)
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
        found.append(sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters()))
    return found


@pytest.mark.parametrize("unit", ["params", "bytes"])
def test_the_most_layers_stay_that_fit(world: Path, unit: str) -> None:
    known = look_at_config(str(world / "teacher"), Faults())
    assert known is not None
    each = 1 if unit == "params" else known.config.dtype.itemsize
    counts = [each * count for count in sizes(world / "teacher")]
    for layers in (1, 2, 3):
        for asked in (counts[layers - 1], counts[layers] - 1, counts[layers - 1] / counts[-1] * 1.0001):
            assert find_layers(TargetConfig(**{unit: asked}), known, None) == layers
    with pytest.raises(UsageError, match="even one layer"):
        find_layers(TargetConfig(**{unit: counts[0] - 1}), known, None)
    with pytest.raises(UsageError, match="is there already"):
        find_layers(TargetConfig(**{unit: counts[-1]}), known, None)


def test_a_speed_up_is_chosen_by_the_line_through_two_timings(world: Path) -> None:
    """0.1 s and 0.3 s a layer: 1.3 s with 4, so 1.0, 0.7 and 0.4 s with 3, 2 and 1, of which each is 2% slower here."""
    known = look_at_config(str(world / "teacher"), Faults())
    assert known is not None
    seconds = {4: 1.3, 2: 0.7}
    for layers, own in ((3, 1.0), (2, 0.7), (1, 0.4)):
        assert find_layers(TargetConfig(decode_speedup=1.3 / (own * 1.0201)), known, seconds) == layers
        if layers > 1:
            assert find_layers(TargetConfig(decode_speedup=1.3 / (own * 1.0199)), known, seconds) == layers - 1


def test_a_run_of_a_size_is_planned_made_judged_and_verified(world: Path, tmp_path: Path) -> None:
    changes = (*LEAN, "target={params: 0.7x}")
    planned = run_cli(
        "run", str(world / "recipe.yaml"), "--out", str(tmp_path / "run"), "--dry-run", *(f"--set={c}" for c in changes)
    )
    assert "target: 0.7x of the teacher in params at most: 2 layers stay, chosen by kl-greedy" in planned.stdout
    run = run_to(tmp_path / "run", world / "recipe.yaml", *changes)
    (entry,) = read_json(run / "report.json")["target"]
    count = sizes(world / "teacher")
    assert entry["found"] == pytest.approx(count[1] / count[3])
    assert entry["reached"] is True
    assert "| Parameters, at most | 0.700× | 0.591× | reached |" in (run / "report.md").read_text()
    assert {check.status for check in verify_run(run)} <= {"ok", "not checked"}
    before = sha256_tree(run, "*.safetensors")
    run_recipe(load_recipe(run / "recipe.yaml"), run)
    with pytest.raises(UsageError, match="layers was 2 and is 3"):
        run_recipe(load_recipe(world / "recipe.yaml", [*LEAN, "target={params: 0.9x}"]), run)
    with pytest.raises(UsageError, match="layers was 2 and is 3"):
        run_recipe(load_recipe(run / "recipe.yaml", ["target.params=0.9x"]), run)
    assert sha256_tree(run, "*.safetensors") == before


def test_a_speed_up_is_timed_once_and_the_recipe_says_what_came_of_it(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token takes 1 ms, and another 1 ms a layer: 5 ms with 4 layers, and 1.2 times as fast is 4.17 ms."""
    asked = []

    def timed(configs: dict[str, Any], folder: Path, config: Any) -> dict[str, dict[str, float]]:
        asked.append({name: shape.num_hidden_layers for name, shape in configs.items()})
        return {name: {"decode_tokens_per_s": 1000 / (1 + int(name))} for name in configs}

    monkeypatch.setattr(target, "speed_of_shapes", timed)
    recipe = load_recipe(world / "recipe.yaml", [*LEAN, "target={decode_speedup: 1.2x}"])
    for _ in range(2):
        run_recipe(recipe, tmp_path / "run")
    assert asked == [{"4": 4, "2": 2}]
    assert load_recipe(tmp_path / "run" / "recipe.yaml").prune.layers == 3
    assert read_json(tmp_path / "run" / "student" / "config.json")["num_hidden_layers"] == 3


def test_random_models_are_timed_at_both_depths(world: Path, tmp_path: Path) -> None:
    known = look_at_config(str(world / "teacher"), Faults())
    assert known is not None
    shape = EvalConfig(speed_prompt_tokens=8, speed_decode_tokens=4, speed_repeats=2)
    found = target.measured_seconds(known, shape, tmp_path / "target.json", measure=True)
    assert found is not None
    assert found.keys() == {4, 2}
    assert all(0 < seconds < 10 for seconds in found.values())
    assert target.measured_seconds(known, shape, tmp_path / "target.json", measure=False) == found
    other = dataclasses.replace(shape, speed_decode_tokens=5)
    assert target.measured_seconds(known, other, tmp_path / "target.json", measure=False) is None
    with pytest.raises(UsageError, match="hides what a layer costs"):
        find_layers(TargetConfig(decode_speedup=1.1), known, {4: 1.0, 2: 1.1})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["target={params: 0.5x, bytes: 1MB}"], "params and bytes each say how many layers stay"),
        (["target={}"], "write what is to be reached"),
        (["target={kept: 95%}"], "eval: {during"),
        (["target={kept: 95%, rank_after: 4k}"], "a cut is chosen for a size"),
        (["target={params: 0.5x}", "prune={keep: 0::2}"], "leave keep, layers, by and rank_after out"),
        (["target={params: 0.5x}", "stages=[{layers: 2}]"], "one of a cut of the teacher"),
        (["target={decode_speedup: 0.9}"], "target.decode_speedup"),
    ],
)
def test_targets_that_contradict_each_other_are_refused(world: Path, changes: list[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        load_recipe(world / "recipe.yaml", ["prune={}", *changes])


def test_what_is_kept_is_judged_by_the_end_of_its_interval() -> None:
    def cells(found: float, low: float, wanted: float) -> list[str]:
        entry: dict[str, Any] = {"name": "kept", "asked": wanted, "found": found, "ci95": [low, 1.0], "takes": []}
        return target_table({"target": [{**entry, "reached": low >= wanted}]}).rows[0]

    assert cells(0.97, 0.95, 0.95)[2:] == ["97% [95%, 100%]", "reached"]
    assert cells(0.97, 0.94, 0.95)[3] == "not reached"
    for steps, told in ((0, True), (9, False)):
        note = target_table({"target": [], "train": {"reached": True, "steps": steps}}).note
        assert ("Nothing was trained" in note) is told
