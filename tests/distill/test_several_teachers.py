"""Several teachers: their mixture is the formula in float64, each alone is the limit of its weight, and each speaks for
the sources that it is given."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_world import SEQ_LEN, World, losses_of, setting_of
from divergence_definitions import ALL, divergence_by_definition, name_of
from helpers import save_tiny_model
from torch import Tensor

from compress.base.config import build_from, to_dict
from compress.base.disk import read_json, sha256_tree
from compress.base.errors import CompressError, InputError, UsageError
from compress.data import DataConfig, TokenStore, prepare
from compress.distill import DistillConfig, plan_distill
from compress.distill.config import DivergenceConfig, divergence_of
from compress.distill.objective.loss import LossOptions, loss_of_valid
from compress.distill.objective.mixture import Mixture, Voice
from compress.distill.objective.signals import Needs
from compress.distill.rows.batch import Batch, micro_batch
from compress.distill.rows.source import StoreRows
from compress.distill.teachers.config import MixtureConfig
from compress.distill.teachers.several import SeveralTeachers
from compress.distill.teachers.source import LiveTeacher
from compress.model.load import load_model
from compress.model.parts import OutputHead

Options = Callable[..., DistillConfig]
VOCABULARY = 37
HEADS: list[dict[str, Any]] = [{}, {"scale": 0.7, "softcap": 3.0}, {"bias": True}]


def voices_of(count: int, places: int, dtype: torch.dtype) -> tuple[Voice, ...]:
    """Random teachers of different widths and kinds of head, whose weights are other ones at each place."""
    draw = torch.Generator().manual_seed(count)
    weights = torch.rand(places, count, generator=draw, dtype=torch.float64) + 0.05
    weights /= weights.sum(1, keepdim=True)
    found = []
    for number in range(count):
        width, fields = 8 + number, dict(HEADS[number])
        if fields.get("bias"):
            fields["bias"] = torch.randn(VOCABULARY, generator=draw).to(dtype)
        head = OutputHead(torch.randn(VOCABULARY, width, generator=draw).to(dtype), **fields)
        found.append(Voice(torch.randn(places, width, generator=draw).to(dtype), head, weights[:, number]))
    return tuple(found)


def by_formula(voices: tuple[Voice, ...], of: str, temperature: float) -> Tensor:
    """log of the mixture at T in float64, [N, V]."""
    total = torch.zeros(len(voices[0].hidden), VOCABULARY, dtype=torch.float64)
    for hidden, head, weights in voices:
        z = head.scale * (hidden.double() @ head.weight.double().T + (0 if head.bias is None else head.bias.double()))
        z = z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)
        part = (z / temperature).softmax(-1) if of == "probabilities" else z / temperature
        total += weights[:, None] * part
    return total.log() if of == "probabilities" else total.log_softmax(-1)


def loss_and_gradients(
    voices: tuple[Voice, ...], of: Any, divergence: DivergenceConfig, dtype: torch.dtype, **options: Any
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Soft loss and the gradients of hidden states and head of a student: ours, and autograd's of the formula."""
    places, temperature = len(voices[0].hidden), 1.7
    draw = torch.Generator().manual_seed(9)
    hidden, weight = (torch.randn(n, 8, generator=draw).to(dtype).requires_grad_() for n in (places, VOCABULARY))
    labels = torch.zeros(places, dtype=torch.int64)
    asked = LossOptions(alpha=1.0, temperature=temperature, divergence=divergence_of(divergence), **options)
    found = loss_of_valid(hidden, OutputHead(weight), None, None, labels, asked, mixture=Mixture(voices, of))
    ours = torch.autograd.grad(found.loss, (hidden, weight))
    exact, head = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    each = divergence_by_definition(divergence, by_formula(voices, of, temperature), exact @ head.T / temperature)
    soft = temperature**2 * each.mean()
    return (found.soft, *ours), (soft.detach(), *torch.autograd.grad(soft, (exact, head)))


@pytest.mark.parametrize("divergence", ALL, ids=name_of)
@pytest.mark.parametrize("of", ["probabilities", "logits"])
@pytest.mark.parametrize("count", [2, 3])
def test_the_loss_against_a_mixture_is_the_formulas(count: int, of: str, divergence: DivergenceConfig) -> None:
    """In float64, in chunks that do not divide the places, at T = 1.7: value and gradients."""
    voices = voices_of(count, 23, torch.float64)
    for found, expected in zip(*loss_and_gradients(voices, of, divergence, torch.float64, chunk_tokens=7), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("of", ["probabilities", "logits"])
def test_the_compiled_pass_takes_a_mixture_in_tiles(of: str) -> None:
    """3,000 places in fp32: several tiles of a chunk, and the C++ pass where there is a compiler."""
    voices = voices_of(3, 3000, torch.float32)
    divergence = DivergenceConfig(name="forward_kl")
    for found, expected in zip(*loss_and_gradients(voices, of, divergence, torch.float32), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, check_dtype=False)
