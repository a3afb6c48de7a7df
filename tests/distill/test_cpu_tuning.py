"""The CPU's switches: exact where they claim to be, undone where they can be, off when asked."""

from collections.abc import Callable

import pytest
import torch
from distill_world import World
from safetensors.torch import load_file

from compress.base import machine
from compress.base.machine import fast_fp32_products
from compress.distill import DistillConfig
from compress.distill.resources import switches


def test_fast_products_are_fp32_and_the_setting_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_made_by_intel", lambda: False)
    g = torch.Generator().manual_seed(1)
    a, b = torch.randn(300, 700, generator=g), torch.randn(700, 200, generator=g)
    exact = a.double() @ b.double()
    before = torch.get_float32_matmul_precision()
    with fast_fp32_products():
        assert (a @ b - exact).norm() / exact.norm() < 5e-6
    assert torch.get_float32_matmul_precision() == before


def test_inexact_products_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor whose `medium` products are bf16 is imitated by a rounded one."""
    product = torch.Tensor.__matmul__

    def rounded(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if a.dtype == torch.float32 and torch.get_float32_matmul_precision() == "medium":
            return product(a.bfloat16(), b.bfloat16()).float()
        return product(a, b)

    monkeypatch.setattr(machine, "_made_by_intel", lambda: False)
    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    before = torch.get_float32_matmul_precision()
    with fast_fp32_products() as used:
        assert not used
        assert torch.get_float32_matmul_precision() == before


def test_intels_own_processors_keep_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_made_by_intel", lambda: True)
    with fast_fp32_products() as used:
        assert not used


def test_tuning_is_said_and_can_be_turned_off(
    world: World,
    options: Callable[..., DistillConfig],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    kept: list[bool] = []
    monkeypatch.setattr(switches, "keep_freed_memory", lambda: kept.append(True) or True)
    world.run("plain", options(cpu_tuning=False))
    assert not kept
    assert "CPU tuning" not in capfd.readouterr().err
    world.run("tuned", options(cpu_tuning=True))
    assert kept == [True]
    assert "cpu_tuning: false turns both off" in " ".join(capfd.readouterr().err.split())
    plain, tuned = (load_file(world.root / name / "student" / "model.safetensors") for name in ("plain", "tuned"))
    for name in plain:
        torch.testing.assert_close(tuned[name], plain[name], rtol=1e-3, atol=3e-4)
