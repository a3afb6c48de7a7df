"""Optimizers against torch's own and against algebra: what each moves, skips, saves and weighs."""

import math
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from distill_world import SEQ_LEN, World
from helpers import save_tiny_model, tiny_config
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from compress.base.errors import UsageError
from compress.distill import DistillConfig
from compress.distill.loop.optimizer import StudentOptimizer, flat_state, hidden_matrices, make_optimizer, state_bytes
from compress.model.load import load_model
from compress.model.parts import empty_model

Options = Callable[..., DistillConfig]

needs_torchao_and_a_compiler = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:OptimState8bit does not implement"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
OPTIMIZERS = ["adamw", "muon", pytest.param("adamw8bit", marks=needs_torchao_and_a_compiler)]


def skip(value: float) -> torch.Tensor:
    return torch.tensor(value)


def tiny_model(world: World, optimizer: str = "adamw") -> Any:
    """A Llama whose larger matrices have 4096 values, so that their moments are quantised by adamw8bit."""
    if optimizer == "adamw8bit":
        pytest.importorskip("torchao")
    folder = save_tiny_model(world.root / "llama", seed=5, scale=0.1, num_hidden_layers=1, intermediate_size=128)
    return load_model(folder, dtype=torch.float32)


def set_gradients(model: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def bits(model: Any, optimizer: StudentOptimizer) -> list[bytes]:
    """The bytes of every weight and every state tensor (so that -0.0 is not 0.0 and NaN is NaN)."""
    states = [tensor for state in optimizer.state.values() for tensor in flat_state(state).values()]
    return [tensor.detach().numpy().tobytes() for tensor in [*model.parameters(), *states]]


@pytest.mark.parametrize("tied", [True, False])
def test_muon_gets_the_matrices_of_linear_layers_only(tied: bool) -> None:
    llama = AutoModelForCausalLM.from_config(tiny_config(num_hidden_layers=2, tie_word_embeddings=tied))
    names = {name for name, p in llama.named_parameters() if p in hidden_matrices(llama)}
    kinds = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    parts = {kind: "mlp" if kind in kinds[4:] else "self_attn" for kind in kinds}
    assert names == {f"model.layers.{i}.{parts[kind]}.{kind}.weight" for i in range(2) for kind in kinds}

    gpt2 = AutoModelForCausalLM.from_config(tiny_config("gpt2", num_hidden_layers=1))
    names = {name for name, p in gpt2.named_parameters() if p in hidden_matrices(gpt2)}
    ends = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    assert names == {f"transformer.h.0.{end}.weight" for end in ends}


def test_muon_and_adamw_are_torchs_own(world: World, options: Options) -> None:
    model, reference = tiny_model(world), tiny_model(world)
    optimizer = make_optimizer(model, options(optimizer="muon", weight_decay=0.1, lr=1.0))
    hidden = hidden_matrices(reference)
    rest = [p for p in reference.parameters() if p not in hidden]
    muon = torch.optim.Muon(list(hidden), lr=1.0, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    groups = [
        {"params": [p for p in rest if p.ndim == 2], "weight_decay": 0.1},
        {"params": [p for p in rest if p.ndim == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), fused=True)
    for step, rate in enumerate([1e-3, 2e-2, 5e-3]):
        set_gradients(model, step)
        set_gradients(reference, step)
        optimizer.step(rate, skip(0.0))
        for part in (muon, adamw):
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_muon_update_has_the_size_of_an_adamw_update(world: World, options: Options) -> None:
    """An A x B matrix whose min(A, B) singular values are 1 has root mean square 1 / sqrt(max(A, B))."""
    model = tiny_model(world)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, options(optimizer="muon", weight_decay=0.0))
    set_gradients(model, 0)
    optimizer.step(1e-2, skip(0.0))
    hidden = hidden_matrices(model)
    for name, parameter in model.named_parameters():
        size = float((parameter.detach() - before[name]).square().mean().sqrt()) / 1e-2
        if parameter in hidden:
            assert size == pytest.approx(0.2, rel=0.3), (
                name
            )  # singular values are within 0.7 to 1.2 after five iterations
        else:
            assert size == pytest.approx(1.0, rel=0.01), name  # the first step of Adam is a sign


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_step_changes_no_bit(world: World, options: Options, name: str) -> None:
    model = tiny_model(world, name)
    with torch.no_grad():
        next(model.parameters())[0] = -0.0
    fresh = [p.detach().numpy().tobytes() for p in model.parameters()]
    optimizer = make_optimizer(model, options(optimizer=name))
    assert [p.detach().numpy().tobytes() for p in model.parameters()] == fresh
    assert all((state["step"] == 0) if "step" in state else True for state in optimizer.state.values())
    for step in range(2):
        before = bits(model, optimizer)
        for bad in (math.nan, math.inf, 1.0):
            set_gradients(model, step)
            for parameter in model.parameters():
                parameter.grad.view(-1)[0] = bad
            optimizer.step(1e-2, skip(1.0))
            assert bits(model, optimizer) == before
        set_gradients(model, step)
        optimizer.step(1e-2, skip(0.0))
        changed = [now != then for now, then in zip(bits(model, optimizer), before, strict=True)]
        assert all(changed[: len(list(model.parameters()))])
        assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("name", OPTIMIZERS[1:])
def test_a_run_that_was_cut_ends_bitwise_equal(world: World, options: Options, name: str) -> None:
    if name == "adamw8bit":
        pytest.importorskip("torchao")
    config = options(optimizer=name, checkpoint_every=3, schedule="wsd", keep_checkpoints=9)
    world.run("whole", config)
    shutil.copytree(world.root / "whole/train", world.root / "cut/train")
    for step in (6, 8):
        shutil.rmtree(world.root / f"cut/train/checkpoints/step-{step}")
    world.run("cut", config)
    for file in ("train/checkpoints/step-8/optimizer.safetensors", "student/model.safetensors"):
        assert (world.root / "cut" / file).read_bytes() == (world.root / "whole" / file).read_bytes()
    losses = [row["heldout_loss"] for row in world.metrics("whole") if "heldout_loss" in row]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_is_as_large_as_planned(world: World, options: Options, name: str) -> None:
    model = tiny_model(world, name)
    config = options(optimizer=name)
    optimizer = make_optimizer(model, config)
    states = [flat_state(state) for state in optimizer.state.values()]
    counted = {k: t for i, state in enumerate(states) for k, t in ((f"{i}{key}", t) for key, t in state.items())}
    real = sum(t.nbytes for key, t in counted.items() if not key.endswith(("step", ".qmap")))
    assert state_bytes(empty_model(model.config), config) == real


def test_muons_state_is_one_buffer_in_the_checkpoint(world: World, options: Options) -> None:
    world.run("run", options(optimizer="muon", tokens=4 * SEQ_LEN))
    saved = load_file(world.root / "run/train/checkpoints/step-1/optimizer.safetensors")
    matrix = "transformer.h.0.mlp.c_fc.weight"
    assert {key.split("/")[0] for key in saved if key.endswith(matrix)} == {"momentum_buffer"}
    assert {key.split("/")[0] for key in saved if "wte" in key} == {"step", "exp_avg", "exp_avg_sq"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:OptimState8bit does not implement")
def test_8_bit_moments_follow_adamw(world: World, options: Options) -> None:
    """torchao's update is AdamW's up to the rounding of the moments."""
    pytest.importorskip("torchao")
    models = {name: tiny_model(world) for name in ("adamw", "adamw8bit")}
    for name, model in models.items():
        optimizer = make_optimizer(model, options(optimizer=name, weight_decay=0.1))
        for step in range(5):
            set_gradients(model, step)
            optimizer.step(1e-3, skip(0.0))
    start = tiny_model(world)
    for first, exact, rounded in zip(*(m.parameters() for m in (start, *models.values())), strict=True):
        assert (rounded - exact).norm() < 0.1 * (exact - first).norm()


def test_a_missing_torchao_is_explained(world: World, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.base.packages.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"adamw8bit needs the package torchao: `pip install 'compress\[quant\]'`"):
        world.run("run", options(optimizer="adamw8bit"))
    with pytest.raises(UsageError, match=r"int8 needs the package torchao"):
        world.run("run", options(teacher_precision="int8"))
