"""`compress init`: recipes that a dry run takes, of a depth that was asked for, with a reason on every line."""

import json
import math
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from gguf_world import write_gguf
from helpers import byte_tokenizer, run_cli, save_tiny_model, tiny_config
from model_zoo import NUM_LAYERS, save_teacher
from recipe_world import write_benchmark

from compress.base.documents import load_yaml
from compress.base.errors import Faults, UsageError
from compress.base.machine import Memory
from compress.distill.resources.flops import PeakFlops
from compress.model.facts import ModelFacts, look_at_config
from compress.model.remote_code import trusting
from compress.run import init
from compress.run.best import ON_CPU, ON_GPU
from compress.run.depth import CONTEXT, choose_depth, token_cost
from compress.run.draft import Draft, as_yaml
from compress.run.init_config import InitConfig
from compress.run.plan import plan_run
from compress.run.recipe import Recipe, load_recipe

TYPES = ("llama", "gpt2", "gemma3_text", "qwen3_moe", "falcon_h1", "phi3")
LONG = "".join(f"Number {i} comes after number {i - 1}.\n" for i in range(20_000))


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU of 1 TFLOP/s in products, whatever this one does now."""
    monkeypatch.setattr(init, "peak_flops", lambda *_: PeakFlops(1e12, "measured"))
    monkeypatch.setattr(init, "default_device", lambda: torch.device("cpu"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(LONG)
    return tmp_path / "text.txt"


def draft(teacher: Path, text: Path, **asked: Any) -> tuple[Draft, Recipe]:
    out = text.parent / "recipe.yaml"
    made = init.write_draft(str(teacher), InitConfig(data=str(text), **asked), out)
    return made, load_recipe(out)


def check_by_dry_run(made: Draft, home: Path) -> None:
    """A dry run refuses nothing, with a benchmark that is here in the place of those on the hub."""
    write_benchmark(home, [{"question": "a", "options": ["b", "c"], "answer": 0}])
    there = (f"eval.task_folder={home}/tasks", f"eval.datasets_root={home}/hub", "eval.tasks=[tiny_choice]")
    plan, outlook = plan_run(load_recipe(made.path, there), home / "run", flops_per_s=10**12)
    outlook.refuse()
    assert plan is not None
    assert plan.prune.params_after == made.figures["params_after"]
    if load_recipe(made.path).distill.precision == "fp32":  # what a dry run plans on a CPU by
        assert plan.distill.total_bytes == made.figures["memory_bytes"]
    assert not plan.counted or plan.distill.tokens == made.figures["tokens"]


@pytest.mark.parametrize("model_type", TYPES)
def test_a_dry_run_takes_the_recipe(model_type: str, text: Path, tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / model_type, model_type)
    byte_tokenizer().save_pretrained(teacher)
    made, recipe = draft(teacher, text, layers=4)
    assert recipe.prune.layers == 4
    assert recipe.name == f"{model_type}-4-layers"
    check_by_dry_run(made, tmp_path)


def test_a_gguf_teacher_has_its_files_name(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "home"))
    write_gguf(tmp_path / "Tiny.Q8_0.gguf", stored="Q8_0")
    made, recipe = draft(tmp_path / "Tiny.Q8_0.gguf", text, layers=2)
    assert recipe.name == "Tiny.Q8_0-2-layers"
    assert recipe.teacher.model == str(tmp_path / "Tiny.Q8_0.gguf")
    check_by_dry_run(made, tmp_path)


def test_every_line_has_a_reason_and_says_what_is_no_default(text: Path, tmp_path: Path) -> None:
    teacher = save_tiny_model(tmp_path / "my teacher: é #1")
    with trusting(True):
        made, recipe = draft(teacher, text)
    lines = [line for line in made.path.read_text().splitlines() if line and not line.startswith("#")]
    assert all("  # " in line for line in lines if not line.endswith(":"))
    assert recipe.teacher.model == str(teacher)
    assert recipe.teacher.trust_remote_code
    sections = {name: value for name, value in load_yaml(made.path).data.items() if isinstance(value, dict)}
    for section, given in sections.items():
        for name, value in given.items():
            assert getattr(type(getattr(recipe, section)), name, None) != value, f"{section}.{name}"
    assert {choice.key for choice in made.choices} >= {f"{s}.{name}" for s, given in sections.items() for name in given}


def llama_cost(layers: int, config: Any) -> float:
    """FLOPs of a token that looks at `CONTEXT`, by hand."""
    heads, kv, width, inner = 4, 2, 32, 64
    weights = width * width * 2 + 2 * width * width * kv // heads + 3 * width * inner
    return layers * (2 * weights + 4 * width * CONTEXT) + 2 * width * config["vocab_size"]


def test_a_speed_up_is_the_most_layers_that_cost_so_little(tmp_path: Path) -> None:
    teacher = save_tiny_model(tmp_path / "teacher", num_hidden_layers=12)
    known, config = look_at_config(str(teacher), Faults()), json.loads((teacher / "config.json").read_text())
    assert known is not None
    whole = llama_cost(12, config)
    assert token_cost(known.config) == whole
    for speedup in (1.1, 1.5, 2.0, 6.0):
        most = max(n for n in range(1, 12) if whole / llama_cost(n, config) >= speedup)
        assert choose_depth(known, InitConfig(speedup=speedup))[0] == most


def test_the_default_drops_at_most_half_and_a_speed_up_out_of_reach_is_refused(text: Path, tmp_path: Path) -> None:
    teacher = save_tiny_model(tmp_path / "teacher", num_hidden_layers=5, vocab_size=40_000)
    assert draft(teacher, text)[1].prune.layers == 3
    (tmp_path / "recipe.yaml").unlink()
    with pytest.raises(UsageError, match=r"--speedup 3: even one layer of .* costs more, as embeddings and head"):
        draft(teacher, text, speedup=3.0)
    assert not (tmp_path / "recipe.yaml").exists()


@pytest.mark.parametrize(("share", "layers"), [("95%", 9), ("70%", 7), ("61.5 %", 7), ("1%", 1), ("99.9%", 9)])
def test_a_score_is_a_share_of_the_layers_and_said_to_be_a_guess(share: str, layers: int) -> None:
    known = ModelFacts("a model", tiny_config(num_hidden_layers=10), Path())
    depth, why = choose_depth(known, InitConfig(keep_score=share))
    assert depth == layers
    assert "a guess" in why


def test_time_decides_the_tokens_and_the_text_what_there_is(text: Path, tmp_path: Path) -> None:
    teacher, tokens = save_tiny_model(tmp_path / "teacher"), []
    text.write_text("x" * 20_000_000)
    for hours in (1e-5, 2e-5):
        made, recipe = draft(teacher, text, hours=hours)
        assert made.figures["hours"] == pytest.approx(hours, rel=0.15)
        assert recipe.data.tokens is not None
        tokens.append(recipe.data.tokens)
        made.path.unlink()
    assert tokens[1] == pytest.approx(2 * tokens[0], rel=0.15)
    made, recipe = draft(teacher, text, hours=1000.0)
    assert recipe.data.tokens is None
    assert made.figures["tokens"] == pytest.approx(20_000_000 / 6, rel=0.02)


def test_a_gpu_has_its_own_way(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init, "default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(init, "resolve_precision", lambda *_: "bf16")
    monkeypatch.setattr(init, "memory_of", lambda _: Memory(80 * 2**30, 80 * 2**30))
    teacher = save_tiny_model(tmp_path / "teacher", max_position_embeddings=4096)
    text.write_text("x" * 20_000_000)
    made, recipe = draft(teacher, text)
    assert recipe.data.tokens == pytest.approx(ON_GPU.tokens_per_parameter * made.figures["params_after"], rel=0.1)
    assert recipe.data.seq_len == 2048
    assert recipe.distill.batch_tokens == ON_GPU.least_step
    assert recipe.eval.limit is None
    assert recipe.distill.precision == "auto"
    assert "seq_len" not in made.path.read_text()
    check_by_dry_run(made, tmp_path)


def test_what_does_not_fit_is_made_to(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = save_tiny_model(tmp_path / "teacher")
    made, recipe = draft(teacher, text)
    made.path.unlink()
    assert recipe.distill.micro_batch_rows is None
    less = int(0.9 * made.figures["memory_bytes"])
    monkeypatch.setattr(init, "memory_of", lambda _: Memory(less, less))
    tight, recipe = draft(teacher, text)
    assert recipe.distill.micro_batch_rows is not None or recipe.distill.gradient_checkpointing
    assert tight.figures["memory_bytes"] <= less
    monkeypatch.setattr(init, "memory_of", lambda _: Memory(1000, 1000))
    tight.path.unlink()
    assert "NOT ENOUGH" in draft(teacher, text)[0].describe()


def test_steps_are_powers_of_two_within_bounds(text: Path) -> None:
    for tokens in (1, 5000, 10**6, 10**8, 10**10):
        for way in (ON_CPU, ON_GPU):
            step = init._step_tokens(init._Text(tokens, True, 256, ""), way)
            assert way.least_step <= step <= way.most_step
            assert math.log2(step).is_integer()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        ("null", '"null"'),
        ("a: b", '"a: b"'),
        ("hub:a/b:c-1", "hub:a/b:c-1"),
        ("x #y", '"x #y"'),
        ("12", '"12"'),
        ("5%", "5%"),
        (["quick"], "[quick]"),
        (1500, "1500"),
        (1_500_000, "1.5M"),
        (524_288, "524288"),
        (1e-4, "0.0001"),
    ],
)
def test_values_are_written_as_they_are_read(value: Any, text: str, tmp_path: Path) -> None:
    assert as_yaml(value) == text
    (tmp_path / "v.yaml").write_text(f"v: {text}\n")
    read = load_yaml(tmp_path / "v.yaml").data["v"]
    assert read == value or text == "1.5M"


def test_the_command_prints_a_table_or_json_and_never_writes_over_a_file(text: Path, tmp_path: Path) -> None:
    teacher = save_tiny_model(tmp_path / "teacher", num_hidden_layers=NUM_LAYERS)
    command = ("init", str(teacher), "--data", str(text), "--out", "r.yaml")
    done = run_cli(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split()[:2] == [
        "name",
        f"teacher-{load_recipe(tmp_path / 'r.yaml').prune.layers}-layers",
    ]
    assert "Wrote r.yaml. Next: compress run r.yaml --dry-run --flops-per-s" in done.stderr
    written = (tmp_path / "r.yaml").read_bytes()
    again = run_cli(*command, cwd=tmp_path)
    assert (again.returncode, (tmp_path / "r.yaml").read_bytes()) == (2, written)
    assert "r.yaml is there already" in again.stderr
    record = json.loads(run_cli(*command[:-1], "j.yaml", "--keep-score", "70%", "--json", cwd=tmp_path).stdout)
    assert record["recipe"] == "j.yaml"
    assert record["choices"]["prune.layers"]["value"] == math.ceil(0.7 * NUM_LAYERS)
    assert record["expected"]["params_after"] < record["expected"]["params_before"]


def test_a_run_of_the_recipe_ends_in_a_report(text: Path, tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "teacher", num_hidden_layers=4)
    made = run_cli("init", "teacher", "--data", str(text), "--hours", "1e-5", "--layers", "3", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    small = ("eval.tasks=[]", "eval.speed_repeats=1", "prune.calibration_tokens=4k")
    done = run_cli("run", "recipe.yaml", *(f"--set={assignment}" for assignment in small), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "runs" / "teacher-3-layers" / "report.json").read_text())
    assert report["student"]["params"] < report["teacher"]["params"]


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (("--layers", "2", "--speedup", "2"), "write one of `speedup`, `keep_score` and `layers`"),
        (("--layers", "4"), "has 4 layers: name fewer that stay"),
        (("--keep-score", "0.95"), "write 95%"),
        (("--speedup", "1"), "greater than 1"),
        (("--hours", "0"), "greater than 0"),
    ],
)
def test_what_cannot_be_is_wrong_usage(asked: tuple[str, ...], why: str, text: Path, tmp_path: Path) -> None:
    teacher = save_tiny_model(tmp_path / "teacher")
    done = run_cli("init", str(teacher), "--data", str(text), *asked, cwd=tmp_path)
    assert done.returncode == 2
    assert why in done.stderr
    assert not (tmp_path / "recipe.yaml").exists()
