"""The same numbers as torchtune's and TRL's own losses, where these packages are installed (`pytest -m slow`)."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.distill import distillation_loss
from compress.distill.config import DivergenceConfig

pytestmark = pytest.mark.slow
IGNORED = -100


def inputs() -> tuple[list[Tensor], Tensor]:
    """Hidden states and heads of both models in float64, the student's two with gradients, and labels."""
    g = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((24, 8), (50, 8), (24, 12), (50, 12))
    ]
    labels = torch.randint(0, 50, (24,), generator=g)
    labels[::5] = IGNORED
    return [t.requires_grad_(i < 2) for i, t in enumerate(tensors)], labels


def compare(divergence: DivergenceConfig, peer: Any, **options: Any) -> None:
    """Loss and gradients, to what both lose in fp32, which peers go through."""
    (hidden, head, teacher_hidden, teacher_head), labels = inputs()
    out = distillation_loss(
        hidden, head, teacher_hidden, teacher_head, labels, alpha=1.0, divergence=divergence, **options
    )
    ours = [out.loss.detach(), *torch.autograd.grad(out.loss, (hidden, head))]
    theirs = peer(hidden @ head.T, teacher_hidden @ teacher_head.T, labels)
    expected = [theirs.detach(), *torch.autograd.grad(theirs, (hidden, head))]
    for found, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(found, wanted.to(found.dtype), rtol=2e-5, atol=1e-7)


def torchtune_losses() -> ModuleType:
    """Its file of losses, without the package around it, which asks for others."""
    found = importlib.util.find_spec("torchtune")
    if found is None or not found.submodule_search_locations:
        pytest.skip("torchtune is not installed")
    path = Path(found.submodule_search_locations[0]) / "modules" / "loss" / "kd_losses.py"
    spec = importlib.util.spec_from_file_location("kd_losses", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("divergence", "name"),
    [
        (DivergenceConfig(name="cross_entropy"), "ForwardKLLoss"),
        (DivergenceConfig(name="reverse_kl"), "ReverseKLLoss"),
    ],
    ids=["forward", "reverse"],
)
def test_torchtune(divergence: DivergenceConfig, name: str) -> None:
    """Its forward KL leaves out the teacher's entropy, which has no gradient: cross-entropy here."""
    loss = getattr(torchtune_losses(), name)(ignore_index=IGNORED)
    compare(divergence, loss)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_trl(beta: float, temperature: float) -> None:
    """Its loss is not multiplied by the square of the temperature."""
    trainer = pytest.importorskip("trl.experimental.gkd.gkd_trainer").GKDTrainer

    def peer(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = trainer.generalized_jsd_loss(
            student[None], teacher[None], labels[None], beta=beta, temperature=temperature
        )
        return temperature**2 * loss

    compare(DivergenceConfig(name="generalised_js", beta=beta), peer, temperature=temperature)
