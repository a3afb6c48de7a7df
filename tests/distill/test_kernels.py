"""The compiled passes over logits, C++ and Triton (on the CPU under its interpreter), against float64 definitions."""

import importlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from types import ModuleType
from typing import Any

import pytest
import torch
from divergence_definitions import ALL, divergence_by_definition, name_of
from torch import Tensor

from compress.distill.config import DivergenceConfig, divergence_of
from compress.distill.objective.divergences import TileLoss
from compress.distill.objective.kernels import KERNELS, cpu

FORWARD = DivergenceConfig(name="forward_kl")

Pass = Callable[[Tensor, Tensor | None, Tensor, TileLoss], Tensor]

needs_compiler = pytest.mark.skipif(not cpu.available(), reason="no g++ or clang++ with OpenMP on this machine")


def definition(z: Tensor, z_teacher: Tensor | None, labels: Tensor, terms: TileLoss) -> tuple[Tensor, Tensor]:
    """[soft, hard] sums and the gradient with respect to uncapped logits, by autograd in float64."""
    z = z.double().requires_grad_()

    def capped(logits: Tensor, cap: float | None) -> Tensor:
        return logits if cap is None else cap * torch.tanh(logits / cap)

    student, t = capped(z, terms.student_cap), terms.temperature
    hard = torch.nn.functional.cross_entropy(student, labels, reduction="sum")
    soft = torch.zeros((), dtype=torch.float64)
    if z_teacher is not None:
        teacher = capped(z_teacher.double(), terms.teacher_cap)
        soft = t**2 * divergence_by_definition(terms.divergence, teacher / t, student / t).sum()
    (gradient,) = torch.autograd.grad(terms.alpha * soft + (1 - terms.alpha) * hard, z)
    return torch.stack([soft, hard]).detach(), gradient


def on_cpu(z: Tensor, z_teacher: Tensor | None, labels: Tensor, terms: TileLoss) -> Tensor:
    return cpu.losses_then_gradient_(z, z_teacher, labels, terms, cpu.scratch(z.shape[1]))


@pytest.fixture
def interpreted() -> ModuleType:
    """The Triton kernel, run by Triton's interpreter."""
    pytest.importorskip("triton", reason="triton is not installed")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("TRITON_INTERPRET is not set; the kernel is tested on the GPU")
    versions = [tuple(map(int, metadata.version(name).split(".")[:2])) for name in ("triton", "numpy")]
    if versions[0] < (3, 7) and versions[1] >= (2, 4):
        pytest.skip("the interpreter of Triton before 3.7 cannot work with NumPy 2.4 or later")
    return importlib.import_module("compress.distill.objective.kernels.cuda")


CASES = [
    (width, temperature, alpha, dtype, with_teacher)
    for width, (temperature, alpha), dtype, with_teacher in itertools.product(
        [5, 513, 4100], [(1.0, 0.8), (2.0, 0.3), (0.7, 1.0)], [torch.float32, torch.bfloat16], [True, False]
    )
]


def check(
    run: Pass, width: int, temperature: float, alpha: float, dtype: torch.dtype, with_teacher: bool,
    divergence: DivergenceConfig = FORWARD, caps: tuple[float | None, float | None] = (None, None),
) -> None:  # fmt: skip
    """Losses within 1e-6, gradients within fp32's or bf16's rounding."""
    g = torch.Generator().manual_seed(width)
    z, z_teacher = ((4 * torch.randn(6, width, generator=g)).to(dtype) for _ in range(2))
    z[0], z_teacher[0] = z[0] + 300, z_teacher[0] - 300
    labels = torch.randint(0, width, (6,), generator=g)
    teacher = z_teacher if with_teacher else None
    terms = TileLoss(alpha if with_teacher else 0.0, temperature, divergence, *caps, gradient=True)
    expected, expected_gradient = definition(z, teacher, labels, terms)
    written = z.clone()
    found = run(written, teacher, labels, terms)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-6, atol=1e-6)
    error = (written.double() - expected_gradient).norm() / expected_gradient.norm()
    plain = divergence.name in ("forward_kl", "cross_entropy") and caps == (None, None)
    assert error < (4e-3 if dtype == torch.bfloat16 else 3e-7 if plain else 1e-6)
    untouched = z.clone()
    losses_only = TileLoss(terms.alpha, temperature, divergence, *caps, gradient=False)
    assert torch.equal(run(untouched, teacher, labels, losses_only), found)
    assert torch.equal(untouched, z)


@needs_compiler
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cpp_pass(case: tuple[Any, ...]) -> None:
    check(on_cpu, *case)
    check(on_cpu, *case, divergence=DivergenceConfig(name="cross_entropy"))


COMPILED = [divergence_of(config) for config in ALL if divergence_of(config).name in KERNELS]


@needs_compiler
@pytest.mark.parametrize("divergence", COMPILED, ids=name_of)
@pytest.mark.parametrize("case", [(513, 1.0, 0.8, torch.float32, True), (513, 2.0, 0.3, torch.bfloat16, True)], ids=str)
def test_cpp_pass_of_every_divergence(case: tuple[Any, ...], divergence: DivergenceConfig) -> None:
    check(on_cpu, *case, divergence=divergence)


@needs_compiler
@pytest.mark.parametrize("divergence", COMPILED, ids=name_of)
def test_cpp_pass_of_disjoint_and_of_equal_rows(divergence: DivergenceConfig) -> None:
    """Losses as in float64 where logits are 1e4 apart, and none where they are the same."""
    z, z_teacher = torch.zeros(3, 600), torch.zeros(3, 600)
    z[0, :300], z_teacher[0, 300:] = 1e4, 1e4
    z[1] = torch.linspace(-20, 20, 600)
    z_teacher[1] = z[1]
    z[2], z_teacher[2] = torch.linspace(0, 1e4, 600), torch.linspace(1e4, 0, 600)
    terms = TileLoss(1.0, 1.0, divergence, None, None, gradient=True)
    for row in range(3):
        expected, gradient = definition(z[row : row + 1], z_teacher[row : row + 1], torch.tensor([0]), terms)
        written = z[row : row + 1].clone()
        found = on_cpu(written, z_teacher[row : row + 1], torch.tensor([0]), terms)
        assert written.isfinite().all()
        if expected.isfinite().all() and gradient.isfinite().all():
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(written.double(), gradient, rtol=1e-5, atol=2e-3)  # fp32's rounding of 1e4


@pytest.mark.parametrize("case", [case for case in CASES if case[0] != 513], ids=str)
def test_triton_kernel(interpreted: ModuleType, case: tuple[Any, ...]) -> None:
    check(interpreted.losses_then_gradient_, *case)


@pytest.mark.parametrize("divergence", COMPILED, ids=name_of)
@pytest.mark.parametrize("case", [(513, 1.0, 0.8, torch.float32, True), (5, 2.0, 0.3, torch.float32, True)], ids=str)
def test_triton_kernel_of_every_divergence(
    interpreted: ModuleType, case: tuple[Any, ...], divergence: DivergenceConfig
) -> None:
    check(interpreted.losses_then_gradient_, *case, divergence=divergence)


@pytest.mark.parametrize("caps", [(30.0, None), (None, 5.0), (30.0, 30.0)])
def test_triton_kernel_with_soft_capped_logits(
    interpreted: ModuleType, caps: tuple[float | None, float | None]
) -> None:
    check(
        interpreted.losses_then_gradient_,
        700,
        2.0,
        0.6,
        torch.float32,
        True,
        DivergenceConfig(name="cross_entropy"),
        caps,
    )


@needs_compiler
def test_the_cpp_pass_does_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    z, z_teacher, labels = torch.randn(33, 2000, generator=g), torch.randn(33, 2000, generator=g), torch.arange(33)
    terms = TileLoss(0.5, 2.0, FORWARD, None, None, gradient=True)
    results = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        gradient = z.clone()
        results.append((on_cpu(gradient, z_teacher, labels, terms), gradient))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@needs_compiler
@pytest.mark.parametrize("divergence", COMPILED, ids=name_of)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_reach_the_loss(bad: float, divergence: DivergenceConfig) -> None:
    """The training loop skips a step by its loss and its gradient's norm: neither may hide a broken logit."""
    for dtype, where in itertools.product([torch.float32, torch.bfloat16], [0, 1]):
        tiles = [torch.randn(4, 100).to(dtype) for _ in range(2)]
        tiles[where][2, 7] = bad
        terms = TileLoss(0.5, 1.0, divergence, None, None, gradient=True)
        assert not on_cpu(tiles[0], tiles[1], torch.zeros(4, dtype=torch.int64), terms).isfinite().all()
        assert not tiles[0].isfinite().all()


def test_without_a_compiler_torch_does_the_work(tmp_path: Any) -> None:
    script = (
        "import torch; from compress.distill import distillation_loss\n"
        "from compress.distill.objective.kernels import cpu\n"
        "assert not cpu.available()\n"
        "h, w = torch.randn(8, 4), torch.randn(50, 4)\n"
        "out = distillation_loss(h, w, h + 1, w, torch.arange(8)); assert out.loss > 0"
    )
    environment = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_triton_kernel_on_a_gpu(case: tuple[Any, ...]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    kernel = importlib.import_module("compress.distill.objective.kernels.cuda")

    def on_gpu(z: Tensor, z_teacher: Tensor | None, labels: Tensor, terms: TileLoss) -> Tensor:
        device = z.cuda()
        teacher = None if z_teacher is None else z_teacher.cuda()
        losses = kernel.losses_then_gradient_(device, teacher, labels.cuda(), terms)
        z.copy_(device)
        return losses

    check(on_gpu, *case)
    for divergence in COMPILED if case[-1] else ():
        check(on_gpu, *case, divergence=divergence)
