"""The same command on two processes, with whole or with split weights, does what it does on one."""

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import warm
from distill_world import MANY_TERMS, SEQ_LEN, World
from helpers import ROOT, assert_close, run_cli, save_tiny_model
from launch import TORCHRUN, launch, start
from safetensors.torch import load_file

from compress.base.errors import UsageError
from compress.distill import DistillConfig
from compress.distill.resources.auto import resolve_sharding
from compress.distill.students.config import LoraConfig

Options = Callable[..., DistillConfig]
UNLIKE = {"tokens_per_s", "peak_gib", "mfu"}


def assert_same_run(world: World, name: str, other: str) -> None:
    """Weights and metrics agree but for rounding, and the rows of every step are the same."""
    one, two = (load_file(world.root / run / "student" / "model.safetensors") for run in (name, other))
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=2e-5)
    for single, double in zip(world.metrics(name), world.metrics(other), strict=True):
        for key in single.keys() - UNLIKE:
            expected = single[key] if isinstance(single[key], str) else pytest.approx(single[key], rel=1e-4)
            assert double[key] == expected, key


def checkpoints(world: World, name: str) -> Path:
    return world.root / name / "train" / "checkpoints"


@pytest.mark.parametrize(
    ("shard", "tied", "objective"),
    [
        ("none", True, {}),
        ("both", True, {}),
        ("none", True, MANY_TERMS),
        ("both", True, MANY_TERMS),
        ("both", True, {"lora": LoraConfig(r=4)}),
        pytest.param("none", True, {"lora": LoraConfig(r=4)}, marks=pytest.mark.slow),
        pytest.param("student", False, {"train": "last:1"}, marks=pytest.mark.slow),
        pytest.param("none", False, {}, marks=pytest.mark.slow),
        pytest.param("student", False, {}, marks=pytest.mark.slow),
    ],
)
def test_two_processes_equal_one(
    world: World, options: Options, shard: str, tied: bool, objective: dict[str, Any]
) -> None:
    """Five rows a step over two processes: an odd row is filled up, micro-batches differ, the result does not."""
    student = save_tiny_model(world.root / "student", scale=0.1, num_hidden_layers=2, tie_word_embeddings=tied)
    config = options(batch_tokens=5 * SEQ_LEN, tokens=28 * SEQ_LEN, micro_batch_rows=2, **objective)
    world = dataclasses.replace(world, student=student)
    world.run("one", config)
    split = dataclasses.replace(config, shard=shard, gradient_checkpointing=shard != "none")
    command = world.command("two", split)
    done = launch(2, command) if shard == "both" else warm().launch(2, *command)  # once as users do, with torchrun
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_run(world, "one", "two")
    record = json.loads((world.root / "two" / "student" / "distill.json").read_text())
    assert (record["processes"], record["shard"]) == (2, shard)
    one, two = (load_file(checkpoints(world, name) / "step-6/optimizer.safetensors") for name in ("one", "two"))
    assert {key: tensor.shape for key, tensor in two.items()} == {key: tensor.shape for key, tensor in one.items()}


@pytest.mark.faults(10)
def test_a_run_goes_on_with_another_number_of_processes(world: World, options: Options) -> None:
    """Two processes with split weights, then one, then two with whole ones: as one that was never stopped."""
    config = options(batch_tokens=5 * SEQ_LEN, tokens=28 * SEQ_LEN, keep_checkpoints=9)
    student = save_tiny_model(world.root / "student", scale=0.1, num_hidden_layers=2)
    world = dataclasses.replace(world, student=student)
    world.run("one", config)
    done = warm().launch(2, *world.command("changing", dataclasses.replace(config, shard="both")))
    assert done.returncode == 0, done.stderr[-3000:]
    go_back(world, "changing", 2)
    world.run("changing", config)
    go_back(world, "changing", 4)
    done = warm().launch(2, *world.command("changing", config))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("Continuing from") == 1
    assert "4 of 6 steps are done" in " ".join(done.stderr.split())
    assert_same_run(world, "one", "changing")


def go_back(world: World, name: str, step: int) -> None:
    """Make a finished run one that was cut after a checkpoint."""
    shutil.rmtree(world.root / name / "student")
    for path in checkpoints(world, name).iterdir():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["none", "both"])
def test_a_signal_to_the_launcher_saves_and_the_run_goes_on(world: World, options: Options, shard: str) -> None:
    """SIGTERM to torchrun reaches both processes, which save the same step; resumed, the result is the same bits."""
    config = options(batch_tokens=2 * SEQ_LEN, epochs=6, tokens=None, checkpoint_every=0, heldout_every=0, shard=shard)
    whole = launch(2, world.command("whole", config))
    assert whole.returncode == 0, whole.stderr[-3000:]
    process = start([*TORCHRUN, "-m", "compress.cli", *world.command("cut", config)])
    metrics = world.root / "cut" / "train" / "metrics.jsonl"
    while process.poll() is None and (not metrics.is_file() or metrics.read_text().count("\n") < 5):
        time.sleep(0.01)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Stopped by SIGTERM after step" in " ".join(said.split()), said[-3000:]
    assert len(list(checkpoints(world, "cut").iterdir())) == 1
    done = launch(2, world.command("cut", config))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Continuing from" in done.stderr
    one, two = (world.root / name / "student" / "model.safetensors" for name in ("whole", "cut"))
    assert one.read_bytes() == two.read_bytes()


SPLIT = """
import sys
import torch
from torch import nn
from compress.base import processes
from compress.distill.students import sharding
from compress.distill.objective.signals import Needs
from compress.distill.teachers.source import LiveTeacher
from compress.model.load import load_model
from pathlib import Path

processes.join()
folder = Path(sys.argv[1])
plain, model = (load_model(folder, dtype=torch.float32) for _ in range(2))
module = LiveTeacher(model, Needs(), 261)
sharding.shard_model(module, model, device=torch.device("cpu"), bf16=False)
parts = {name: sharding.local(p) for name, p in model.named_parameters()}
total = sum(p.numel() for p in plain.parameters())
held = processes.all_gather(sum(part.numel() for part in parts.values()))
assert sum(held) == total and max(held) < 0.6 * total, (held, total)
for (name, parameter), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
    full = sharding.whole(parts[name], parameter)
    assert torch.equal(full, expected), name
    assert torch.equal(sharding.part_of(expected, parameter), parts[name]), name
copy = sharding.whole_model(model, torch.bfloat16)
assert (copy is None) == (processes.rank() == 1)
if copy is not None:
    expected = plain.to(torch.bfloat16).state_dict()
    assert copy.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in copy.state_dict().items())
processes.leave()
"""


def test_weights_are_split_in_halves_and_made_whole_again_bit_for_bit(tmp_path: Path) -> None:
    """Rows that do not divide by two, and tied embeddings."""
    model = save_tiny_model(tmp_path / "model", num_hidden_layers=2, vocab_size=261, intermediate_size=63)
    (tmp_path / "split.py").write_text(SPLIT)
    done = warm().launch(2, str(model), script=tmp_path / "split.py")
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("changes", "processes", "says"),
    [
        ({"shard": "both"}, 1, "this is one"),
        ({"shard": "student", "optimizer": "muon"}, 2, "whole matrices"),
        ({"shard": "student", "compile": True}, 2, "one graph"),
        ({"shard": "both", "teacher_precision": "int8"}, 2, "shard: student"),
    ],
)
def test_what_sharding_does_not_go_with_is_refused(
    options: Options, changes: dict[str, object], processes: int, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        resolve_sharding(options(**changes), processes)


def test_a_launcher_configured_for_fsdp_splits_both_models(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_sharding(options(), 2) == "none"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert [resolve_sharding(options(), n) for n in (1, 2)] == ["none", "both"]
    assert resolve_sharding(options(shard="none"), 2) == "none"


RUN = """
name: whole
teacher: {{model: {teacher}}}
data: {{dataset: {text}, seq_len: 32, heldout_sequences: 8}}
distill: {{batch_tokens: 256, lr: 1e-3, log_every: 5, heldout_sequences: 8}}
eval: {{heldout_sequences: 8, samples: 1, sample_tokens: 8, sample_prompt_tokens: 8, speed: false}}
"""


@pytest.mark.slow
def test_a_whole_run_under_accelerate_with_fsdp_equals_one_process(tmp_path: Path, text_file: Path) -> None:
    """With the launch configuration of recipes/, cut down to two processes on a CPU."""
    teacher = save_tiny_model(tmp_path / "teacher", num_hidden_layers=4, scale=0.1)
    (tmp_path / "recipe.yaml").write_text(RUN.format(teacher=teacher, text=text_file))
    given = (ROOT / "recipes/launch/eight-gpus-fsdp2.yaml").read_text()
    assert "num_processes: 8" in given
    config = given.replace("num_processes: 8", "num_processes: 2\nuse_cpu: true\nmain_process_port: 0")
    (tmp_path / "launch.yaml").write_text(config)
    done = run_cli("run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "one"))
    assert done.returncode == 0, done.stderr
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "launch.yaml")]
    arguments = ["-m", "compress.cli", "run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "two")]
    process = start([*accelerate, *arguments])
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said[-3000:]
    record = json.loads((tmp_path / "two" / "student" / "distill.json").read_text())
    assert (record["processes"], record["shard"]) == (2, "both")
    for name in ("teacher", "student-init", "student"):
        one, two = (json.loads((tmp_path / run / "eval" / f"{name}.json").read_text()) for run in ("one", "two"))
        rel = 1e-6 if name == "student" else 0
        assert_close(two["heldout"], one["heldout"], rel=rel)
        if one["fidelity"] is not None:
            assert_close(two["fidelity"], one["fidelity"], rel=max(rel, 1e-4) if rel else 0)
    assert (tmp_path / "two" / "report.html").is_file()
