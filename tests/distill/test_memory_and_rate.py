"""The memory plan against what a fresh process takes, its advice, and the rate that MFU is a share of."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from distill_world import SEQ_LEN, World
from helpers import save_tiny_model, tiny_config

from compress.base.config import to_dict
from compress.base.errors import UsageError
from compress.base.units import format_bytes
from compress.data import DataConfig, prepare
from compress.distill import DistillConfig, DistillPlan, fit, plan_distill
from compress.distill.fit import advice, check_fit
from compress.distill.resources import flops
from compress.distill.resources.loading import recompute_activations
from compress.distill.resources.step_memory import StepShape, trace_step
from compress.distill.students.config import LoraConfig
from compress.model.parts import count_parameters, empty_model

Options = Callable[..., DistillConfig]

CPU = torch.device("cpu")
SCRIPT = """
import json, sys
from pathlib import Path
from compress.base.config import build_from
from compress.distill import DistillConfig, distill

job = json.loads(Path(sys.argv[1]).read_text())
distill(build_from(DistillConfig, job["config"]), **{k: Path(v) for k, v in job["arguments"].items()})
"""


LORA = {"lora": LoraConfig(r=8)}


@pytest.mark.parametrize(
    ("seq_len", "rows", "changes"),
    [
        (128, 8, {}),
        (128, 8, LORA),
        (128, 8, {"train": "last:1"}),
        pytest.param(512, 4, {}, marks=pytest.mark.slow),
        pytest.param(512, 4, {"gradient_checkpointing": True}, marks=pytest.mark.slow),
        pytest.param(512, 4, {"gradient_checkpointing": True, **LORA}, marks=pytest.mark.slow),
    ],
)
def test_the_plan_is_within_15_percent_of_a_cpu_run(
    world: World, options: Options, seq_len: int, rows: int, changes: dict[str, Any]
) -> None:
    """glibc is told to return large blocks at once: what it else keeps between live blocks is not the run's."""
    text = world.root / "text.jsonl"
    text.write_text(json.dumps({"text": "ann saw bob and cat went home. " * 1600}) + "\n")
    big = {"hidden_size": 256, "intermediate_size": 1024, "vocab_size": 8192, "max_position_embeddings": 512}
    world = dataclasses.replace(
        world,
        student=save_tiny_model(world.root / "big-student", scale=0.02, num_hidden_layers=3, **big),
        teacher=save_tiny_model(world.root / "big-teacher", scale=0.02, num_hidden_layers=6, **big),
        data=world.root / "rows",
    )
    prepare(
        DataConfig(dataset=str(text), seq_len=seq_len, heldout_sequences=0), tokenizer=world.student, out=world.data
    )
    config = options(
        batch_tokens=2 * rows * seq_len, tokens=4 * rows * seq_len, micro_batch_rows=rows, heldout_sequences=0,
        checkpoint_every=0, **changes,
    )  # fmt: skip
    arguments = {key: str(value) for key, value in world.arguments("run").items()}
    (world.root / "job.json").write_text(json.dumps({"config": to_dict(config), "arguments": arguments}))
    (world.root / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(world.root / "script.py"), str(world.root / "job.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((world.root / "run" / "student" / "distill.json").read_text())
    assert sum(record["memory_plan"].values()) == pytest.approx(record["peak_memory"], rel=0.15)
    sys.stdout.write(f"planned {record['memory_plan']}, measured {record['peak_memory']}\n")
    assert record["peak_flops"]["source"] == "measured"
    assert 0 < record["mfu"] < 1


@pytest.mark.parametrize(
    ("attention_name", "recompute"), [("sdpa", None), ("eager", None), ("sdpa", recompute_activations)]
)
def test_a_layer_more_keeps_what_its_operations_save(
    attention_name: str, recompute: Callable[[Any], None] | None
) -> None:
    """Values a token that a Llama layer's backward pass needs, counted by hand."""
    rows, length, width, inner, heads = 2, 64, 32, 96, 4
    shape = StepShape(rows, length, False, attention_name, recompute, logits_bytes=1000, accumulates=False)
    kept = [
        trace_step(tiny_config(num_hidden_layers=layers, intermediate_size=inner), None, shape).activations
        for layers in (2, 3)
    ]
    if recompute is not None:
        assert kept[1] - kept[0] == rows * length * width * 4  # the layer's input
        return
    head = width // heads
    norms = 2 * (2 * width + 1)  # each: its input as it is and normalised, and the root's reciprocal
    attention = 4 * heads * head + width  # query, key and value (repeated for each head), output; what they come from
    mlp = width + 4 * inner  # its input; gate, the gate activated, up, and their product
    scores = heads * length if attention_name == "eager" else heads  # the softmax, or its log-sum-exp
    per_token = (kept[1] - kept[0]) / (rows * length * 4)
    assert per_token == pytest.approx(norms + attention + mlp + scores)


def test_accumulated_gradients_are_counted_once() -> None:
    config = tiny_config(num_hidden_layers=2)
    shape = StepShape(2, 32, False, "sdpa", None, logits_bytes=0, accumulates=False)
    parameters = count_parameters(empty_model(config))
    first, later = (trace_step(config, config, shape._replace(accumulates=on)) for on in (False, True))
    assert first.activations == later.activations
    assert first.peak <= later.peak <= first.peak + 4 * parameters


def planner() -> Callable[[DistillConfig], DistillPlan]:
    config = tiny_config(num_hidden_layers=2)
    return lambda changed: plan_distill(changed, student=config, teacher=config, num_rows=1000, seq_len=64, device=CPU)


def test_advice_names_the_first_change_that_fits(options: Options) -> None:
    config = options(batch_tokens=64 * 64, tokens=None, micro_batch_rows=4)
    plan = planner()
    whole = plan(config).total_bytes
    half = plan(dataclasses.replace(config, micro_batch_rows=2)).total_bytes
    assert advice(config, plan, half).startswith(f"micro_batch_rows: 2 would save {format_bytes(whole - half)}")
    lean = plan(dataclasses.replace(config, micro_batch_rows=1, gradient_checkpointing=True)).total_bytes
    assert "gradient_checkpointing: true, micro_batch_rows: 1 would save" in advice(config, plan, lean)
    assert f"The least it can do with is {format_bytes(lean)}" in advice(config, plan, lean - 1)


def test_a_short_device_is_warned_of_and_a_hopeless_one_refused(
    options: Options, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = options(batch_tokens=64 * 64, tokens=None, micro_batch_rows=4)
    plan = planner()
    needed = plan(config).total_bytes
    for free, warned in ((needed, False), (needed - 1, True)):
        monkeypatch.setattr(fit, "memory_of", lambda device, free=free: (free, 10**12))
        check_fit(config, plan, CPU)
        said = " ".join(capfd.readouterr().err.split())
        assert ("Memory may not suffice" in said, "micro_batch_rows: 2 would save" in said) == (warned, warned)
    monkeypatch.setattr(fit, "memory_of", lambda device: (1000, 1000))
    with pytest.raises(UsageError, match="cpu has 1000"):
        check_fit(config, plan, CPU)


def test_the_peak_of_a_cpu_is_its_best_product(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = [9.0, 0.5, 0.5, 0.25, 1.0, 0.5, 0.5, 0.5]  # the first warms up
    readings = iter([t for duration in durations for t in (0.0, duration)])
    monkeypatch.setattr(flops, "time", SimpleNamespace(perf_counter=lambda: next(readings)))
    flops._product_rate.cache_clear()
    try:
        assert flops.peak_flops(CPU, "fp32") == (2 * 512 * 1024 * 2048 / 0.25, "measured")
    finally:
        flops._product_rate.cache_clear()


def test_a_run_says_what_it_planned_and_took(world: World, options: Options) -> None:
    result = world.run("run", options(tokens=4 * SEQ_LEN))
    assert result.memory_plan["weights"] == result.memory_plan["gradients"]
    assert result.peak_memory is None or result.peak_memory > 0
    assert result.peak_flops["source"] == "measured"
    rows = [row for row in world.metrics("run") if "mfu" in row]
    assert all(0 < row["mfu"] < 1 for row in rows)


def test_models_that_need_values_are_planned_by_arithmetic(options: Options) -> None:
    """A state-space model has no layers of attention to run; the plan must not fail on any architecture."""
    plan = plan_distill(
        options(batch_tokens=64 * 64, tokens=None),
        student=tiny_config("mamba"),
        teacher=None,
        num_rows=1000,
        seq_len=64,
    )
    assert plan.memory_bytes["activations"] > 0
