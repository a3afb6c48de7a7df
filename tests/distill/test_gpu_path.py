"""What is decided for GPUs, and the parts of their path that a machine without one can run."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from distill_world import World
from gpu_memory import LLAMAS, PAGE, lines, row

from compress.base.errors import UsageError
from compress.distill import DistillConfig, distillation_loss
from compress.distill.objective import chunks
from compress.distill.resources import flops
from compress.distill.resources.switches import in_one_order

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LLAMA_3, GIB = 128256, 2**30


@pytest.mark.parametrize(
    ("memory", "vocabulary", "value_bytes", "least", "most"),
    [
        (80 * GIB, LLAMA_3, 2, 4096, 4096),
        (24 * GIB, LLAMA_3, 2, 2048, 2200),
        (24 * GIB, 32000, 2, 4096, 4096),
        (8 * GIB, LLAMA_3, 2, 650, 720),
        (80 * GIB, LLAMA_3, 4, 3300, 3500),
        (None, LLAMA_3, 2, 4096, 4096),
    ],
)
def test_a_chunk_on_a_gpu_is_worth_the_gradient_it_rereads(
    memory: int | None, vocabulary: int, value_bytes: int, least: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: memory is not None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=memory))
    assert least <= chunks.default_chunk_tokens(CUDA, vocabulary, value_bytes) <= most
    assert chunks.default_chunk_tokens(CPU, vocabulary, value_bytes) == 2**27 // 4 // vocabulary


def test_sums_over_a_vocabulary_are_added_up_in_fp32() -> None:
    products = torch.backends.cuda.matmul
    switches = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
    before = [getattr(products, name) for name in switches]
    with chunks._added_up_exactly(CPU):
        assert [getattr(products, name) for name in switches] == before
    with chunks._added_up_exactly(CUDA):
        assert not any(getattr(products, name) for name in switches)
    assert [getattr(products, name) for name in switches] == before


def test_a_scaled_loss_has_scaled_gradients() -> None:
    """Against float64 autograd."""
    draw = torch.Generator().manual_seed(0)
    hidden, head, teacher = (torch.randn(n, 8, generator=draw) for n in (6, 50, 6))
    labels = torch.arange(6)
    ours = [tensor.clone().requires_grad_() for tensor in (hidden, head)]
    loss = distillation_loss(*ours, teacher, head, labels, alpha=0.3).loss * 7.0
    loss.backward()
    wide = [tensor.double().requires_grad_() for tensor in (hidden, head)]
    logits, target = wide[0] @ wide[1].T, (teacher.double() @ head.double().T).log_softmax(-1)
    soft = (target.exp() * (target - logits.log_softmax(-1))).sum(-1).mean()
    (7.0 * (0.3 * soft + 0.7 * torch.nn.functional.cross_entropy(logits, labels))).backward()
    for found, expected in zip(ours, wide, strict=True):
        torch.testing.assert_close(found.grad, expected.grad.float(), rtol=1e-5, atol=1e-6)  # type: ignore[union-attr]


NAMES = {
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 836e12,
    "NVIDIA GH200 480GB": 989e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A10": 125e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA GeForce RTX 4090 D": None,
    "NVIDIA GeForce RTX 4090 Laptop GPU": None,
    "NVIDIA A10G": None,
    "NVIDIA A1000": None,
    "Tesla T4": None,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_is_known_by_its_whole_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    monkeypatch.setattr(flops, "_product_rate", lambda *_: 1.0)
    known = NAMES[name]
    expected = (1.0, "measured") if known is None else (known, "data sheet")
    assert flops.peak_flops(CUDA, "bf16") == expected


def test_no_run_does_more_than_is_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peak that was measured in a bad moment is measured again; the run's own rate is possible, too."""
    rates = iter([5.0, 9.0])
    rate = lambda *_: next(rates)  # noqa: E731
    rate.cache_clear = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setattr(flops, "_product_rate", rate)
    slow = flops.peak_flops(CPU, "fp32")
    assert flops.at_least(slow, 4.0, CPU, "fp32") == slow
    better = flops.at_least(slow, 8.0, CPU, "fp32")
    assert better == (9.0, "measured")
    monkeypatch.setattr(flops, "peak_flops", lambda *_: better)
    assert flops.at_least(better, 12.0, CPU, "fp32") == (12.0, "measured")
    sheet = flops.PeakFlops(10.0, "data sheet")
    assert flops.at_least(sheet, 12.0, CUDA, "bf16") == (12.0, "data sheet")


def test_one_order_is_asked_for_and_put_back(options: Callable[..., DistillConfig]) -> None:
    switches: Any = torch.utils.deterministic
    filled = switches.fill_uninitialized_memory
    with in_one_order(options()):
        assert not torch.are_deterministic_algorithms_enabled()
    with in_one_order(options(deterministic=True)):
        assert torch.are_deterministic_algorithms_enabled()
        assert not switches.fill_uninitialized_memory
    assert not torch.are_deterministic_algorithms_enabled()
    assert switches.fill_uninitialized_memory == filled
    message = "deterministic: true cannot be had with this model: cumsum_cuda does not"
    with pytest.raises(UsageError, match=message), in_one_order(options(deterministic=True)):
        raise RuntimeError("cumsum_cuda does not have a deterministic implementation")
    with pytest.raises(RuntimeError, match="shapes"), in_one_order(options(deterministic=True)):
        raise RuntimeError("shapes")


def test_a_deterministic_run_is_a_run(world: World, options: Callable[..., DistillConfig]) -> None:
    """On a CPU nothing changes, bit for bit."""
    plain, ordered = (world.run(name, options(deterministic=name == "ordered")) for name in ("plain", "ordered"))
    weights = [(out.out / "model.safetensors").read_bytes() for out in (plain, ordered)]
    assert weights[0] == weights[1]
    assert (plain.attention, plain.compiled) == ("eager", False)


COMPILE = """
import itertools, json
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from compress.distill.objective.kernels.cuda import _row

signature = dict(labels="*i64", soft="*fp64", hard="*fp64", width="i32")
signature |= dict.fromkeys(("alpha", "temperature", "student_cap", "teacher_cap", "parameter"), "fp32")
flags = ("HAS_TEACHER", "UNIT_TEMPERATURE", "DIVERGENCE", "GRADIENT", "STUDENT_CAPPED", "TEACHER_CAPPED", "BLOCK")
variants = ((1, 1, 1, 1, 0, 0), (1, 0, 1, 1, 0, 0), (1, 0, 1, 1, 1, 1), (0, 1, 1, 1, 0, 0), (1, 1, 1, 0, 0, 0))
variants += tuple((1, 1, divergence, 1, 0, 0) for divergence in range(2, 7))
found = []
for logits, variant in itertools.product(("*bf16", "*fp32"), variants):
    whole = dict(student=logits, teacher=logits, **signature, **dict.fromkeys(flags, "constexpr"))
    constants = dict(zip(flags, (*map(bool, variant), 4096))) | {"DIVERGENCE": variant[2]}
    source = ASTSource(fn=_row, signature=whole, constexprs=constants)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    found.append([len(made.asm["cubin"]), "st.local" in made.asm["ptx"]])
print(json.dumps(found))
"""


def test_the_kernel_compiles_for_an_h100(tmp_path: Path) -> None:
    """To machine code, without spills: Triton brings the assembler, and needs no GPU for it."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILE],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 20
    assert all(size > 1000 and not spills for size, spills in found)


@pytest.mark.parametrize(
    "name", [next(iter(LLAMAS)), *(pytest.param(n, marks=pytest.mark.slow) for n in [*LLAMAS][1:])]
)
def test_the_page_has_the_planners_memory(name: str) -> None:
    assert lines(PAGE.read_text(encoding="utf-8"))[name] == row(name), "run python tests/gpu_memory.py"
