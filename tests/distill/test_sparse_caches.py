"""Draws and most likely tokens of a teacher: the first are unbiased, the second are not, and both cost few bytes."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from distill_world import SEQ_LEN, World
from torch import Tensor

from compress.base.config import build_from
from compress.base.errors import UsageError
from compress.data import TokenStore
from compress.distill import CacheConfig, DistillConfig, distillation_loss
from compress.distill.config import DivergenceConfig
from compress.distill.objective.loss import LossOptions, loss_of_valid
from compress.distill.objective.sparse import Sparse
from compress.distill.teachers.caching import make_cache
from compress.distill.teachers.kinds import Draws, MostLikely
from compress.model.parts import OutputHead

Options = Callable[..., DistillConfig]
SAMPLES, TOPK = CacheConfig(kind="samples"), CacheConfig(kind="topk")
PLACES, VOCABULARY = 10_000, 61


def random_head(vocabulary: int, seed: int, *, width: int = 8, cap: float | None = None) -> OutputHead:
    draw = torch.Generator().manual_seed(seed)
    return OutputHead(torch.randn(vocabulary, width, generator=draw), softcap=cap)


def sparse_loss(hidden: Tensor, head: OutputHead, target: Sparse, labels: Tensor, alpha: float) -> tuple[Tensor, ...]:
    """Loss, soft, hard, and the gradients of hidden states and head."""
    hidden, weight = hidden.clone().requires_grad_(), head.weight.clone().requires_grad_()
    options = LossOptions(alpha=alpha, temperature=1.0, divergence=DivergenceConfig(name="forward_kl"))
    own = dataclasses.replace(head, weight=weight)
    out = loss_of_valid(hidden, own, None, None, labels, options, None, target)
    out.loss.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return out.loss.detach(), out.soft, out.hard, hidden.grad, weight.grad


@pytest.mark.parametrize("cap", [None, 3.0], ids=["plain", "soft-capped"])
@pytest.mark.parametrize(("places", "dtype"), [(7, torch.float64), (3000, torch.float32)], ids=["float64", "fused"])
@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_with_all_ids_it_is_the_whole_divergence(
    places: int, dtype: torch.dtype, alpha: float, cap: float | None
) -> None:
    """w = p over the whole vocabulary and H = H(p) are KL(p || q): value and gradients of the dense loss."""
    draw = torch.Generator().manual_seed(0)
    hidden, other = (torch.randn(places, 8, generator=draw).to(dtype) for _ in range(2))
    own, theirs = (random_head(VOCABULARY, seed, cap=cap) for seed in (1, 2))
    own, theirs = (dataclasses.replace(head, weight=head.weight.to(dtype)) for head in (own, theirs))
    labels = torch.randint(0, VOCABULARY, (places,), generator=draw)
    log_p = theirs.logits(other).double().log_softmax(-1)
    ids = torch.arange(VOCABULARY).flip(0).expand(places, -1)
    target = Sparse(ids, log_p.exp().flip(1), -(log_p.exp() * log_p).sum(-1))
    found = sparse_loss(hidden, own, target, labels, alpha)

    dense, weight = hidden.clone().requires_grad_(), own.weight.clone().requires_grad_()
    expected = distillation_loss(
        dense, dataclasses.replace(own, weight=weight), other, theirs, labels, alpha=alpha, fused=False
    )
    expected.loss.backward()
    rtol, atol = (1e-9, 1e-9) if dtype == torch.float64 else (1e-4, 1e-5)
    for one, two in zip(found, (expected.loss, expected.soft, expected.hard, dense.grad, weight.grad), strict=True):
        torch.testing.assert_close(one, two.detach(), rtol=rtol, atol=atol, check_dtype=False)  # type: ignore[union-attr]


def of_one_place() -> tuple[Tensor, OutputHead, Tensor]:
    """One hidden state many times, [100, 100, D], the head, and p."""
    head = random_head(VOCABULARY, 3)
    state = 0.7 * torch.randn(8, generator=torch.Generator().manual_seed(4))
    return state.expand(100, PLACES // 100, -1), head, head.logits(state[None]).double().softmax(-1)[0]


def test_gradients_of_draws_have_the_expectation_of_the_live_ones() -> None:
    """Pearson's statistic of 500,000 draws at 10,000 places has the mean V - 1 and the variance 2 (V - 1), within three
    standard deviations; so has a gradient in any direction, the loss, and what falls to one token."""
    states, head, p = of_one_place()
    draws = Draws(SAMPLES, VOCABULARY)
    target = draws.decode(draws.encode(states, head, np.arange(100)), PLACES // 100)
    weights = torch.zeros(PLACES, VOCABULARY, dtype=torch.float64)
    weights.scatter_add_(1, target.ids.flatten(0, 1), target.weights.flatten(0, 1).double())
    torch.testing.assert_close(weights.sum(1), torch.ones(PLACES, dtype=torch.float64), rtol=1e-6, atol=1e-6)

    total = PLACES * SAMPLES.draws
    statistic = ((weights.sum(0) * SAMPLES.draws - total * p).square() / (total * p)).sum().item()
    assert abs(statistic - (VOCABULARY - 1)) <= 3 * (2 * (VOCABULARY - 1)) ** 0.5

    student, own = torch.randn(8, generator=torch.Generator().manual_seed(5)), random_head(VOCABULARY, 6)
    log_q = own.logits(student[None]).double().log_softmax(-1)[0]
    flat = Sparse(target.ids.flatten(0, 1), target.weights.flatten(0, 1), target.entropy.flatten())
    labels = torch.zeros(PLACES, dtype=torch.int64)
    _, soft, _, gradient, _ = sparse_loss(student.expand(PLACES, -1), own, flat, labels, 1.0)
    live = (log_q.exp() - p) @ own.weight.double()
    each = own.weight.double()
    spread = ((each - p @ each).square().T @ p / total).sqrt()
    assert ((gradient.double().sum(0) - live).abs() <= 3 * spread).all()
    kl, entropy = (p * (p.log() - log_q)).sum(), -(p * p.log()).sum()
    error = ((log_q + (p * -log_q).sum()).square() @ p / total).sqrt()
    assert abs(soft - kl) <= 3 * error + entropy * 2.0**-11  # half a unit of float16's last place


def test_most_likely_tokens_are_biased_by_what_they_leave_out() -> None:
    """Where the student is the teacher its live gradient is 0; here p_i (1 - 1 / P) of what is kept and p_i of the rest
    is left, with P the probability that is kept."""
    states, head, p = of_one_place()
    kept = MostLikely(TOPK, VOCABULARY)
    target = kept.decode(kept.encode(states[:1, :1], head, np.arange(1)), 1)
    best = p.topk(TOPK.k)
    assert target.ids.flatten().tolist() == best.indices.tolist()
    torch.testing.assert_close(target.weights.flatten().double(), best.values / best.values.sum(), rtol=4e-3, atol=1e-4)
    flat = Sparse(target.ids[0], target.weights[0], target.entropy[0])
    _, soft, _, gradient, _ = sparse_loss(states[0, :1], head, flat, torch.zeros(1, dtype=torch.int64), 1.0)
    left = p.clone()
    left[best.indices] -= best.values / best.values.sum()
    torch.testing.assert_close(gradient[0].double(), left @ head.weight.double(), rtol=2e-2, atol=2e-3)
    assert gradient.norm() > 0.05
    assert soft.item() == pytest.approx(-best.values.sum().log().item(), rel=2e-2)


@pytest.mark.parametrize("vocabulary", [VOCABULARY, 70_001])
@pytest.mark.parametrize("config", [SAMPLES, CacheConfig(kind="samples", draws=255), TOPK], ids=["50", "255", "topk"])
def test_rows_are_the_same_whatever_is_beside_them(config: CacheConfig, vocabulary: int) -> None:
    """The draws of a row depend on its number and the seed alone; what is decoded together is what each row has."""
    head, states = random_head(vocabulary, 0), torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(1))
    kind = (Draws if config.kind == "samples" else MostLikely)(config, vocabulary)
    together = kind.encode(states, head, np.array([5, 6, 7, 8]))
    alone = kind.encode(states[2:3], head, np.array([7]))[0]
    assert np.array_equal(together[2], alone)
    all_rows, one = kind.decode(together, 6), kind.decode([alone], 6)
    assert all_rows.ids.max() < vocabulary
    width = one.ids.shape[-1]
    assert torch.equal(all_rows.ids[2, :, :width], one.ids[0])
    assert torch.equal(all_rows.weights[2, :, :width], one.weights[0])
    assert torch.equal(all_rows.entropy[2], one.entropy[0])
    if config.kind == "samples":
        other = Draws(dataclasses.replace(config, seed=1), vocabulary).encode(states[2:3], head, np.array([7]))[0]
        assert not np.array_equal(other, alone)


@pytest.mark.parametrize("kept", [SAMPLES, TOPK], ids=["samples", "topk"])
def test_a_training_from_few_tokens_is_measured_exactly_and_goes_on(
    world: World, options: Options, kept: CacheConfig
) -> None:
    """Held-out rows have hidden states in any cache: at step 0 all measures are the live run's, bit for bit."""
    config = options()
    cache = make_cache(kept, config, teacher=world.teacher, data=world.data, out=world.root / "cache")
    live, found = world.run("live", config), world.run("sparse", config, cache=cache.path)
    first = [world.metrics(name)[0] for name in ("live", "sparse")]
    assert first[0] == first[1]
    assert live.heldout_kl is not None
    assert found.heldout_kl is not None
    assert found.heldout_kl < 1.5 * live.heldout_kl < first[0]["heldout_kl"]
    store = TokenStore.open(world.data)
    size = sum((cache.path / shard["file"]).stat().st_size for shard in cache.index["shards"])
    heldout = store.num_heldout * SEQ_LEN * 32 * 4
    assert cache.describe()["bytes_per_token"] == round((size - heldout) / (store.num_rows * SEQ_LEN), 1)
    for change, words in (
        ({"divergence": "reverse_kl"}, "divergence: forward_kl alone"),
        ({"temperature": 2.0}, "temperature: 1 alone"),
        ({"self_correct": 0.2}, "self_correct: null alone"),
    ):
        with pytest.raises(UsageError, match=f"kind {kept.kind} is for distill.{words}.*use kind: hidden"):
            world.run("refused", options(**change), cache=cache.path)


@pytest.mark.parametrize("wrong", [{"k": 4}, {"kind": "topk", "draws": 9}, {"kind": "hidden", "seed": 1}])
def test_an_option_of_another_kind_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="leave it out"):
        build_from(CacheConfig, wrong)
