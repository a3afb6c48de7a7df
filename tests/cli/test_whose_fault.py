"""A mistake of the user's is said as one: what was given, where, and what to do; never as a fault of the tool."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import run_cli
from recipe_world import make_run_world
from transformers import AutoModelForCausalLM

from compress.base.config import build_from, dump_yaml, to_dict
from compress.base.documents import dump_data, parse_yaml
from compress.base.errors import UsageError
from compress.cli.exits import explain
from compress.distill import DistillConfig
from compress.distill.resources.schedule import is_due
from compress.run.recipe import Recipe, load_recipe

DEMO_TEACHER = Path(__file__).resolve().parents[2] / "recipes" / "demo-teacher.yaml"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = make_run_world(tmp_path_factory.mktemp("world"))
    model = AutoModelForCausalLM.from_pretrained(world / "teacher")
    with torch.no_grad():
        model.model.layers[3].mlp.down_proj.weight[0, 0] = torch.nan
    model.save_pretrained(world / "nan")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (world / "nan" / name).write_bytes((world / "teacher" / name).read_bytes())
    (world / "same.txt").write_text("the very same line of text\n" * 500)
    (world / "broken").mkdir()
    (world / "broken" / "a.yaml").write_text("task: fine\ndataset_path: [org\n")
    (world / "short.txt").write_text("one line\n" * 500)
    return world


EMPTY = [
    ["prune", "", "out"],
    ["prune", "model", ""],
    ["prune", "model", "out", "--keep", ""],
    ["prune", "model", "out", "--keep="],
    ["prune", "model", "out", "--calibration", ""],
    ["distill", "--student", "", "--data", "x", "--out", "y"],
    ["distill", "--student", "x", "--teacher", "", "--data", "x", "--out", "y"],
    ["distill", "--student", "x", "--data", "", "--out", "y"],
    ["distill", "--student", "x", "--data", "x", "--out="],
    ["eval", "", "--out", "x"],
    ["eval", "m", "--out", "x", "--tasks", ""],
    ["eval", "m", "--out", "x", "--text", ""],
    ["eval", "m", "--out", "x", "--datasets-root", ""],
    ["run", ""],
    ["run", "recipe.yaml", "--out", ""],
    ["run", "recipe.yaml", "--redo", ""],
    ["report", ""],
    ["compare", "a", ""],
    ["verify", "x", "--data", ""],
    ["demo", "--out", ""],
]


@pytest.mark.parametrize("words", EMPTY, ids=" ".join)
def test_an_empty_word_is_refused(words: list[str], tmp_path: Path) -> None:
    """What an unset shell variable leaves."""
    done = run_cli(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(
        r"Invalid value for ('[A-Z]+|'?--[a-z-]+).*: it is empty: is a shell variable unset\?", done.stderr
    )
    assert list(tmp_path.iterdir()) == []


def test_a_hub_that_must_not_be_asked_is_said_at_once(world: Path, tmp_path: Path) -> None:
    for words in (
        ["distill", f"--student={world}/teacher", "--alpha=0", "--data=hub:org/name", "--tokens=1M", "--out=run"],
        ["eval", f"{world}/teacher", "--text=hub:org/name", "--out=e.json"],
        ["run", f"{world}/recipe.yaml", "--set=data.dataset=hub:org/name", "--set=data.tokens=1M", "--out=run"],
    ):
        done = run_cli(*words, cwd=tmp_path, HF_HUB_OFFLINE="1")
        assert done.returncode == 2
        assert "HF_HUB_OFFLINE=1 keeps this process off the network" in done.stderr
        assert "Try 1" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf", "1e400"])
def test_a_rate_that_is_none(rate: str, world: Path) -> None:
    done = run_cli("run", f"{world}/recipe.yaml", "--dry-run", f"--flops-per-s={rate}")
    assert done.returncode == 2
    assert "--flops-per-s" in done.stderr


def test_sizes_that_no_memory_holds(world: Path, tmp_path: Path) -> None:
    for size in ("speed_batch=1000000", "speed_batch=1000000T", "speed_batches=[1,1G]"):
        done = run_cli("eval", f"{world}/teacher", "--out", str(tmp_path / "e.json"), f"--set=eval.{size}")
        assert done.returncode == 2
        assert "for weights and key-value cache" in done.stderr
    assert list(tmp_path.iterdir()) == []
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("not enough memory")):
        message, code = explain(error)
        assert (message.partition(" (")[0], code) == ("Out of memory", 1)
    assert "fault of the tool" in explain(RuntimeError("shapes differ"))[0]


def test_a_compiler_that_fails_is_no_fault_of_the_tool() -> None:
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    for error in (TorchDynamoException("no graph"), InductorError(RuntimeError("no kernel"), None)):
        message, code = explain(error)
        assert code == 1
        assert "torch.compile failed (" in message
        assert "Set distill.compile to false" in message


WEIGHT = "model.layers.3.mlp.down_proj.weight"


def test_a_weight_that_is_no_number_is_named(world: Path, tmp_path: Path) -> None:
    text, short = f"{world}/text.jsonl", ["--set=data.seq_len=64", "--set=data.heldout_sequences=2"]
    for words in (
        ["prune", f"{world}/nan", "out"],
        ["prune", f"{world}/nan", "out", "--layers=2", "--by=block-influence", f"--calibration={text}"],
        ["distill", f"--student={world}/teacher", f"--teacher={world}/nan", f"--data={text}", *short, "--out=run"],
        ["eval", f"{world}/nan", "--out=e.json", "--set=eval.speed=false", f"--text={text}"],
    ):
        done = run_cli(*words, cwd=tmp_path)
        assert done.returncode == 3, done.stderr
        assert WEIGHT in done.stderr


def test_one_text_many_times_is_called_that(world: Path, tmp_path: Path) -> None:
    words = ["distill", f"--student={world}/teacher", "--alpha=0", f"--data={world}/same.txt", "--set=data.seq_len=64"]
    done = run_cli(*words, "--out=run", cwd=tmp_path)
    assert done.returncode == 3
    assert "27 tokens altogether in 1 different texts of 500" in done.stderr
    words = ["distill", f"--student={world}/teacher", "--alpha=0", f"--data={world}/short.txt", "--out=run"]
    done = run_cli(*words, "--set=data.seq_len=4", "--set=data.heldout_sequences=2", cwd=tmp_path)
    assert done.returncode == 3
    assert "after the held-out documents and 499 copies of them" in done.stderr


@pytest.mark.parametrize("task", ["fine", "hellaswag"])
def test_a_task_definition_that_cannot_be_read_is_named(task: str, world: Path, tmp_path: Path) -> None:
    words = ["eval", f"{world}/teacher", f"--tasks={task}", f"--set=eval.task_folder={world}/broken"]
    done = run_cli(*words, "--out=e.json", cwd=tmp_path)
    assert done.returncode == 2
    assert f"{world}/broken/a.yaml, line 3 (" in done.stderr


def test_a_value_of_the_command_line_is_not_blamed_on_a_line(world: Path) -> None:
    recipe = world / "recipe.yaml"
    with pytest.raises(UsageError, match=r"^--set distill\.lr=-1: distill\.lr = -1"):
        load_recipe(recipe, ["distill.lr=-1"])
    with pytest.raises(UsageError, match=r"^--set distill=\{lr: -1\}: distill\.lr = -1"):
        load_recipe(recipe, ["distill={lr: -1}"])
    with pytest.raises(UsageError, match=r"^recipe\.yaml, line \d+, with --set prune\.by=random: prune = "):
        load_recipe(recipe, ["prune.by=random"])
    (world / "wrong").mkdir()
    (world / "wrong" / "recipe.yaml").write_text(recipe.read_text().replace("log_every: 1", "log_every: -1"))
    with pytest.raises(UsageError, match=r"^recipe\.yaml, line \d+: distill\.log_every = -1"):
        load_recipe(world / "wrong" / "recipe.yaml", ["distill.lr=1"])


@pytest.mark.parametrize("name", ["", " ", ".", "..", "../up", "/tmp/x", "a/b", "a\\b", ".hidden", "a\nb", "é" * 101])
def test_a_name_is_no_path(name: str, world: Path) -> None:
    with pytest.raises(UsageError, match="name = "):
        load_recipe(world / "recipe.yaml", [f"name={json.dumps(name)}"])


TEXTS = ("name", "teacher.model", "prune.keep", "data.dataset", "eval.datasets_root", "eval.tasks")


@pytest.mark.parametrize(
    "change", ["prune.keep=", "prune.keep= ", *(f"{name}=''" for name in TEXTS), "eval.tasks=['']"]
)
def test_an_override_without_a_value_is_refused(change: str, world: Path) -> None:
    name = change.partition("=")[0]
    with pytest.raises(UsageError, match=rf"{name}.*it is empty: is a variable unset\?"):
        load_recipe(world / "recipe.yaml", [change])


def test_a_name_may_be_any_word(world: Path) -> None:
    for name in ("llama-3.2-1b", "überholt", "a b", "x" * 200):
        assert load_recipe(world / "recipe.yaml", [f"name={json.dumps(name)}"]).name == name


EACH, TENTHS = list(range(1, 21)), list(range(2, 21, 2))
EVERY: dict[Any, list[int]] = {
    1: EACH,
    "1": EACH,
    5: [5, 10, 15, 20],
    "4": [4, 8, 12, 16, 20],
    10.0: [10, 20],
    0.1: TENTHS,
    "10%": TENTHS,
    "50%": [10, 20],
    "100%": [20],
    0: [20],
}


@pytest.mark.parametrize("every", EVERY, ids=str)
def test_steps_are_whole_numbers_and_shares_have_a_percent_sign(every: Any) -> None:
    config = build_from(DistillConfig, {"checkpoint_every": every})
    assert [step for step in range(1, 21) if is_due(config.checkpoint_every, step, 20)] == EVERY[every]
    again = build_from(DistillConfig, parse_yaml(dump_yaml(config), "again").data)  # as a run's recipe has it
    assert again.checkpoint_every == config.checkpoint_every


@pytest.mark.parametrize("every", [1.0, 2.5, "101%", "-5%", -1, True, "often", "1.5"])
def test_what_may_mean_two_things_is_refused(every: Any) -> None:
    with pytest.raises(UsageError, match="heldout_every = "):
        build_from(DistillConfig, {"heldout_every": every})


def test_both_ways_of_saying_it_are_named() -> None:
    with pytest.raises(UsageError, match="write 1 for every step, or 100% for once a run"):
        build_from(DistillConfig, {"heldout_every": 1.0})


def test_a_recipe_that_an_earlier_version_wrote_means_what_it_meant(world: Path, tmp_path: Path) -> None:
    recipe = load_recipe(world / "recipe.yaml", ["distill.heldout_every=1"])
    assert isinstance(recipe, Recipe)
    earlier = dump_yaml(recipe).replace("heldout_every: 1\n", "heldout_every: 1.0\n")
    (tmp_path / "recipe.yaml").write_text(earlier)
    assert "heldout_every: 1.0" in earlier
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize(("key", "value"), [("teacher", None), ("scratch", 1), ("distill", [1]), ("train", "x")])
def test_a_runs_own_recipe_that_was_damaged_is_refused(key: str, value: object, tmp_path: Path) -> None:
    data = json.loads(json.dumps(to_dict(load_recipe(DEMO_TEACHER))))
    owner = {"scratch": data["teacher"], "train": data["teacher"]["scratch"]}.get(key, data)
    owner[key] = value
    (tmp_path / "recipe.yaml").write_text(dump_data(data))
    with pytest.raises(UsageError, match=key):
        load_recipe(tmp_path / "recipe.yaml")
