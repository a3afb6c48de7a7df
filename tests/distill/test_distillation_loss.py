"""The chunked loss against a dense float64 oracle, and the properties a divergence must have."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from divergence_definitions import ALL, divergence_by_definition, name_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr, softmax
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from compress.base.errors import UsageError
from compress.distill import distillation_loss
from compress.distill.config import DivergenceConfig, divergence_of
from compress.distill.objective.divergences import corrected, tempered
from compress.distill.objective.divergences import divergence as divergence_function
from compress.model.parts import OutputHead

IGNORED = -100


@dataclasses.dataclass
class Case:
    """Random inputs of the loss, in float64."""

    student: Tensor
    student_head: OutputHead
    teacher: Tensor
    teacher_head: OutputHead
    labels: Tensor

    def cast(self, dtype: torch.dtype) -> "Case":
        def head(source: OutputHead) -> OutputHead:
            bias = None if source.bias is None else source.bias.to(dtype)
            return OutputHead(source.weight.to(dtype), bias, source.scale, source.softcap)

        return Case(
            self.student.to(dtype),
            head(self.student_head),
            self.teacher.to(dtype),
            head(self.teacher_head),
            self.labels,
        )

    def leaves(self) -> list[Tensor]:
        bias = self.student_head.bias
        return [self.student, self.student_head.weight, *([] if bias is None else [bias])]


def make_case(
    seed: int, n: int, v: int, d: int, *, ignored: float = 0.0, bias: bool = False, scale: float = 1.0,
    softcap: float | None = None,
) -> Case:  # fmt: skip
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float32).double()

    def head(width: int) -> OutputHead:
        return OutputHead(normal(v, width) / width**0.5 / scale, normal(v) if bias else None, scale, softcap)

    labels = torch.randint(0, v, (n,), generator=g)
    labels[torch.rand(n, generator=g) < ignored] = IGNORED
    return Case(normal(n, d), head(d), normal(n, d + 3), head(d + 3), labels)


def dense(case: Case, alpha: float, temperature: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """[loss, soft, hard, gradients...] by the definition, with autograd, on whole [N, V] tensors."""
    case = case.cast(dtype)
    leaves = [leaf.requires_grad_() for leaf in case.leaves()]

    def logits(hidden: Tensor, head: OutputHead) -> Tensor:
        z = hidden @ head.weight.T
        z = head.scale * (z if head.bias is None else z + head.bias)
        return z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)

    valid = case.labels != IGNORED
    z_s, z_t = logits(case.student, case.student_head)[valid], logits(case.teacher, case.teacher_head)[valid]
    log_p, log_q = torch.log_softmax(z_t / temperature, -1), torch.log_softmax(z_s / temperature, -1)
    count = max(int(valid.sum()), 1)
    soft = temperature**2 * (log_p.exp() * (log_p - log_q)).sum() / count
    hard = -torch.log_softmax(z_s, -1).gather(1, case.labels[valid][:, None]).sum() / count
    loss = alpha * soft + (1 - alpha) * hard
    return (loss.detach(), soft.detach(), hard.detach(), *torch.autograd.grad(loss, leaves))


def chunked(case: Case, **options: Any) -> tuple[Tensor, ...]:
    leaves = [leaf.clone().requires_grad_() for leaf in case.leaves()]
    bias = leaves[2] if len(leaves) == 3 else None
    head = dataclasses.replace(case.student_head, weight=leaves[1], bias=bias)
    out = distillation_loss(leaves[0], head, case.teacher, case.teacher_head, case.labels, **options)
    return (out.loss.detach(), out.soft, out.hard, *torch.autograd.grad(out.loss, leaves))


def relative(found: Tensor, expected: Tensor) -> float:
    error = (found.double() - expected.double()).norm()
    return float(error / expected.double().norm().clamp_min(1e-30)) if error else 0.0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**16),
    n=st.integers(4, 60),
    v=st.integers(8, 300) | st.integers(8000, 12000),
    d=st.integers(4, 24),
    alpha=st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0]),
    temperature=st.sampled_from([0.5, 1.0, 2.0, 3.7]),
    chunk=st.sampled_from([None, 1, 7, 64]),
    ignored=st.sampled_from([0.0, 0.3, 0.6]),
    bias=st.booleans(),
    scale=st.sampled_from([1.0, 0.0625, 1.7]),
    softcap=st.sampled_from([None, 30.0, 1.5]),
    fused=st.booleans(),
)
def test_chunked_equals_dense_float64(
    seed: int, n: int, v: int, d: int, alpha: float, temperature: float, chunk: int | None, ignored: float,
    bias: bool, scale: float, softcap: float | None, fused: bool,
) -> None:  # fmt: skip
    case = make_case(seed, n, v, d, ignored=ignored, bias=bias, scale=scale, softcap=softcap)
    expected = dense(case, alpha, temperature)
    exact = chunked(case, alpha=alpha, temperature=temperature, chunk_tokens=chunk)
    assert all(relative(a, b) < 1e-12 for a, b in zip(exact, expected, strict=True))
    single = case.cast(torch.float32)
    found = chunked(single, alpha=alpha, temperature=temperature, chunk_tokens=chunk, fused=fused)
    rounded = dense(single.cast(torch.float64), alpha, temperature)
    errors = [relative(a, b) for a, b in zip(found, rounded, strict=True)]
    compiled = fused and softcap is None
    assert max(errors[:3]) < (1e-6 if compiled else 2e-6), errors
    # A gradient can be a small difference of large terms, of which fp32 products leave fewer digits to any loss,
    # fewer still where a chunk is one row and its product is a matrix by a vector.
    own = [relative(a, b) for a, b in zip(dense(single, alpha, temperature, torch.float32), rounded, strict=True)]
    assert all(error < max(1e-6, 8 * least) for error, least in zip(errors[4:], own[4:], strict=True)), (errors, own)
    # For fewer than four rows at a time MKL on AMD adds one product after the other, and the dense loss has more rows:
    # sqrt(V) roundings, the probable error of such a sum (Higham and Mary, SISC 41(5), 2019).
    rows = min(int((case.labels != IGNORED).sum()), chunk or n)
    assert errors[3] < max(1e-6, 8 * own[3], math.sqrt(v) * 2**-24 if rows < 4 else 0.0), (errors, own)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("divergence", ["reverse_kl", "jensen_shannon"])
def test_divergences_equal_scipys(divergence: Any, temperature: float) -> None:
    case = make_case(11, 12, 40, 6)
    found = chunked(case, alpha=1.0, temperature=temperature, divergence=divergence, chunk_tokens=5)
    p = softmax((case.teacher @ case.teacher_head.weight.T / temperature).numpy(), axis=1)
    q = softmax((case.student @ case.student_head.weight.T / temperature).numpy(), axis=1)
    expected = rel_entr(q, p).sum(1) if divergence == "reverse_kl" else jensenshannon(p, q, axis=1) ** 2
    assert float(found[1]) == pytest.approx(temperature**2 * expected.mean(), rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("divergence", ALL, ids=name_of)
def test_divergences_and_their_gradients_equal_their_definitions(
    divergence: DivergenceConfig, temperature: float
) -> None:
    """Against autograd of the plain formula in float64, whole; with the hard term beside."""
    case = make_case(12, 12, 40, 6)
    found = chunked(case, alpha=0.7, temperature=temperature, divergence=divergence, chunk_tokens=5)
    leaves = [leaf.clone().requires_grad_() for leaf in case.leaves()]
    z_q, z_p = leaves[0] @ leaves[1].T, case.teacher @ case.teacher_head.weight.T
    soft = temperature**2 * divergence_by_definition(divergence, z_p / temperature, z_q / temperature).mean()
    loss = 0.7 * soft + 0.3 * torch.nn.functional.cross_entropy(z_q, case.labels)
    expected = [loss.detach(), soft.detach(), *torch.autograd.grad(loss, leaves)]
    errors = [relative(a, b) for a, b in zip((found[0], found[1], *found[3:]), expected, strict=True)]
    assert max(errors) < 1e-10, errors


_SLACK = 1e-8  # of logits of 1e4 in float64
SYMMETRIC = ("jensen_shannon", "total_variation", "logit_mse", "uld")
MOST = {"generalised_js": math.log(2), "total_variation": 1.0, "uld": 2.0}


@pytest.mark.parametrize("divergence", ALL, ids=name_of)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**16), scale=st.sampled_from([1e-3, 1.0, 30.0, 1e4]))
def test_what_a_divergence_is(divergence: DivergenceConfig, seed: int, scale: float) -> None:
    """Never negative, nothing where both agree, finite for logits of any size and supports that are disjoint, within
    its bound; the symmetric ones are, also symmetric KL at 1/2 and, turned around, at lambda and 1 - lambda."""
    g = torch.Generator().manual_seed(seed)
    z_p, z_q = (scale * torch.randn(4, 30, generator=g, dtype=torch.float64) for _ in range(2))
    z_p[0, :15], z_q[0, 15:] = -1e4, -1e4
    function = divergence_function(divergence_of(divergence))
    rows, gradient = function(tempered(z_q, 1.0), tempered(z_p, 1.0))
    assert rows.isfinite().all()
    assert gradient.isfinite().all()
    assert (rows > -_SLACK).all()
    assert (gradient.sum(-1).abs() < _SLACK).all()  # the loss does not see what all logits share
    if divergence_of(divergence).name in MOST:
        assert (rows <= MOST[divergence_of(divergence).name] + 1e-12).all()
    same, zero = function(tempered(z_p, 1.0), tempered(z_p, 1.0))
    if divergence.name != "cross_entropy":
        assert (same.abs() < _SLACK).all()
    assert (zero.abs() < _SLACK).all()
    turned = divergence
    if divergence.name == "symmetric_kl":
        turned = DivergenceConfig(name="symmetric_kl", lambda_=1 - divergence.parameter)
    if divergence.name in (*SYMMETRIC, "symmetric_kl"):
        other, _ = divergence_function(divergence_of(turned))(tempered(z_p, 1.0), tempered(z_q, 1.0))
        torch.testing.assert_close(other, rows, rtol=1e-10, atol=_SLACK)


@pytest.mark.parametrize("name", ["generalised_js", "skew_forward_kl", "skew_reverse_kl"])
def test_near_their_limits_divergences_are_the_limits(name: Any) -> None:
    """beta towards 0 or 1, over beta or 1 - beta: forward or reverse KL (GKD, section 3); s towards 0: unskewed."""
    g = torch.Generator().manual_seed(5)
    tiles = [tempered(torch.randn(6, 20, generator=g, dtype=torch.float64), 1.0) for _ in range(2)]
    forward = divergence_function(DivergenceConfig(name="forward_kl"))(*tiles)[0]
    reverse = divergence_function(DivergenceConfig(name="reverse_kl"))(*tiles)[0]
    small = 1e-7
    if name == "generalised_js":
        near = [divergence_function(DivergenceConfig(name=name, beta=x))(*tiles)[0] / small for x in (small, 1 - small)]
        torch.testing.assert_close(near, [forward, reverse], rtol=1e-5, atol=0)
    else:
        found = divergence_function(DivergenceConfig(name=name, s=small))(*tiles)[0]
        torch.testing.assert_close(found, forward if name == "skew_forward_kl" else reverse, rtol=1e-5, atol=0)


def test_a_teacher_that_is_sure_of_the_label_stays_so_and_finite() -> None:
    """Where p_y + tau is more than 1, p' is the label alone, but for the millionth that keeps logarithms finite."""
    logits = torch.tensor([[0.0, 40.0, 1.0], [0.0, 1e4, -1e4], [0.0, 3.0, 1.0]])
    labels = torch.tensor([1, 1, 1])
    found = corrected(tempered(logits, 1.0), labels, 0.9)
    plain = tempered(logits, 1.0)
    torch.testing.assert_close(found.probabilities[:, 1], torch.ones(3), rtol=0, atol=1e-6)
    gap = plain.log_probabilities() - found.log_probabilities()
    torch.testing.assert_close(gap[:, 0], torch.full((3,), 20 * math.log(2)), rtol=1e-3, atol=0)
    assert found.log_probabilities().isfinite().all()


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "generalised_js", "uld"])
@pytest.mark.parametrize("tau", [0.2, 0.9])
def test_a_corrected_teacher_prefers_the_label_by_tau(divergence: Any, tau: float) -> None:
    """Against p' = (1 - m) p + m [y] in float64, and autograd; labels that the teacher has right, wrong and surely."""
    case = make_case(13, 30, 20, 6)
    z_p = case.teacher @ case.teacher_head.weight.T
    p = z_p.softmax(-1)
    case.labels[:10] = p[:10].argmax(-1)
    y = torch.nn.functional.one_hot(case.labels, 20).double()
    p_y, p_max = (p * y).sum(-1, keepdim=True), p.max(-1, keepdim=True).values
    m = torch.where(p_y == p_max, ((p_y + tau).clamp(max=1) - p_y) / (1 - p_y), (p_max - p_y + tau) / (1 + p_max - p_y))
    better = (1 - m) * p + m * y
    gap = (better * y).sum(-1) - (better - y * 2).max(-1).values
    wrong = (p_y != p_max).squeeze(1)
    torch.testing.assert_close(gap[wrong], torch.full_like(gap[wrong], tau))
    leaves = [leaf.clone().requires_grad_() for leaf in case.leaves()]
    config = DivergenceConfig(name=divergence)
    sure = (m < 1 - 1e-6).squeeze(1)
    loss = divergence_by_definition(config, better.clamp(min=1e-300).log(), leaves[0] @ leaves[1].T)
    assert sure.sum() > 15
    case.labels[~sure] = IGNORED
    expected = [loss[sure].mean().detach(), *torch.autograd.grad(loss[sure].mean(), leaves)]
    found = chunked(case, alpha=1.0, divergence=config, self_correct=tau, chunk_tokens=7)
    errors = [relative(a, b) for a, b in zip((found[1], *found[3:]), expected, strict=True)]
    assert max(errors) < 1e-9, errors


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_teacher_equal_to_student_gives_zero_loss_and_zero_gradient(temperature: float) -> None:
    case = make_case(1, 40, 113, 16, ignored=0.2).cast(torch.float32)
    case.teacher, case.teacher_head = case.student, case.student_head
    loss, soft, _, *gradients = chunked(case, alpha=1.0, temperature=temperature, chunk_tokens=9)
    assert abs(loss) < 1e-7
    assert abs(soft) < 1e-7
    assert all((g == 0).all() for g in gradients)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**16), temperature=st.floats(0.3, 5.0))
def test_kl_is_never_negative(seed: int, temperature: float) -> None:
    case = make_case(seed, 8, 40, 4).cast(torch.float32)
    nudge = make_case(seed + 1, 8, 40, 4).student.float()
    case.teacher, case.teacher_head = case.student + 1e-4 * nudge, case.student_head
    assert chunked(case, temperature=temperature)[1] / temperature**2 > -1e-7


def test_soft_cross_entropy_differs_from_kl_by_the_teachers_entropy_and_has_its_gradients() -> None:
    case = make_case(2, 30, 97, 8)
    kl = chunked(case, alpha=0.7, temperature=2.0, divergence="forward_kl")
    ce = chunked(case, alpha=0.7, temperature=2.0, divergence="cross_entropy")
    z = case.teacher @ case.teacher_head.weight.T / 2.0
    entropy = torch.distributions.Categorical(logits=z).entropy().mean()
    torch.testing.assert_close(ce[1] - kl[1], 4 * entropy, rtol=1e-12, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(ce[3:], kl[3:], strict=True))


def test_all_labels_ignored_gives_zeros() -> None:
    case = make_case(3, 10, 50, 8)
    case.labels.fill_(IGNORED)
    out = chunked(case)
    assert [float(x) for x in out[:3]] == [0.0, 0.0, 0.0]
    assert all((g == 0).all() for g in out[3:])


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradcheck(temperature: float, softcap: float | None) -> None:
    case = make_case(4, 6, 11, 5, ignored=0.3, bias=True, scale=0.5, softcap=softcap)
    hidden, weight, bias = (leaf.clone().requires_grad_() for leaf in case.leaves())

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        head = dataclasses.replace(case.student_head, weight=weight, bias=bias)
        options: Any = {"alpha": 0.6, "temperature": temperature, "chunk_tokens": 2}
        return 3 * distillation_loss(hidden, head, case.teacher, case.teacher_head, case.labels, **options).loss

    assert torch.autograd.gradcheck(loss, (hidden, weight, bias))


@pytest.mark.parametrize("seed", range(3))
def test_bf16_error_is_no_larger_than_the_dense_computations_own(seed: int) -> None:
    case = make_case(seed, 96, 4000, 64, ignored=0.2).cast(torch.bfloat16)
    expected = dense(case, 0.8, 2.0)
    found = [relative(a, b) for a, b in zip(chunked(case, temperature=2.0, chunk_tokens=20), expected, strict=True)]
    naive = [relative(a, b) for a, b in zip(dense(case, 0.8, 2.0, torch.bfloat16), expected, strict=True)]
    assert all(a <= b for a, b in zip(found, naive, strict=True)), (found, naive)


def test_autocast_computes_in_bf16_and_returns_the_head_gradient_in_fp32() -> None:
    case = make_case(5, 64, 3000, 32).cast(torch.float32)
    hidden, weight = (leaf.clone().requires_grad_() for leaf in case.leaves())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = distillation_loss(hidden, weight, case.teacher, case.teacher_head, case.labels)
    d_hidden, d_weight = torch.autograd.grad(out.loss, [hidden, weight])
    assert d_hidden.dtype == d_weight.dtype == torch.float32
    expected = dense(case, 0.8, 1.0)
    assert 1e-5 < relative(d_weight, expected[4]) < 2e-2


def test_micro_batches_with_a_common_divisor_add_up_to_the_whole() -> None:
    case = make_case(6, 40, 70, 8, ignored=0.4)
    valid = int((case.labels != IGNORED).sum())
    whole = chunked(case)
    parts = [
        chunked(
            Case(case.student[i : i + 10], case.student_head, case.teacher[i : i + 10], case.teacher_head,
                 case.labels[i : i + 10]),
            num_tokens=valid,
        )
        for i in range(0, 40, 10)
    ]  # fmt: skip
    for index in (0, 1, 2, 4):
        torch.testing.assert_close(sum(part[index] for part in parts), whole[index], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(torch.cat([part[3] for part in parts]), whole[3], rtol=1e-12, atol=1e-15)


def test_without_a_teacher_it_is_plain_cross_entropy() -> None:
    case = make_case(7, 30, 60, 8, ignored=0.3)
    hidden = case.student.clone().requires_grad_()
    out = distillation_loss(hidden, case.student_head.weight, None, None, case.labels, alpha=0.0)
    logits = case.student @ case.student_head.weight.T
    expected = torch.nn.functional.cross_entropy(logits, case.labels, ignore_index=IGNORED)
    torch.testing.assert_close(out.loss.detach(), expected, rtol=1e-12, atol=0)
    assert out.soft == 0
    assert out.num_tokens == int((case.labels != IGNORED).sum())


class Allocations(TorchDispatchMode):
    """Counts the bytes of every product's operations and remembers the largest tensor any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.largest = max(self.largest, leaf.untyped_storage().nbytes())
        return out


def test_no_tensor_grows_with_tokens_times_vocabulary() -> None:
    """The largest tensor is a chunk of logits, whatever the number of tokens."""
    v, d, chunk = 6000, 4, 16
    largest = []
    for n in (64, 640):
        case = make_case(8, n, v, d).cast(torch.float32)
        with Allocations() as seen:
            hidden = case.student.clone().requires_grad_()
            weight = case.student_head.weight.clone().requires_grad_()
            out = distillation_loss(hidden, weight, case.teacher, case.teacher_head, case.labels, chunk_tokens=chunk)
            out.loss.backward()
        largest.append(seen.largest)
    assert largest == [chunk * v * 4] * 2


def test_a_frozen_head_or_hidden_state_skips_its_product() -> None:
    case = make_case(9, 8, 30, 4).cast(torch.float32)

    def products(hidden_grad: bool, weight_grad: bool) -> int:
        hidden, weight = case.student.clone(), case.student_head.weight.clone()
        hidden.requires_grad_(hidden_grad), weight.requires_grad_(weight_grad)
        with Allocations() as seen:
            distillation_loss(hidden, weight, case.teacher, case.teacher_head, case.labels)
        return seen.products

    assert [products(True, True), products(True, False), products(False, True), products(False, False)] == [4, 3, 3, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 1.5}, "alpha is 0 to 1"),
        ({"temperature": 0.0}, "temperature above 0"),
        ({"divergence": "kl"}, "choose one of forward_kl, cross_entropy"),
        ({"teacher_hidden": None, "teacher_head": None}, "needs the teacher"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "does not fit"),
        ({"teacher_head": torch.zeros(5, 7)}, "slice both"),
    ],
)
def test_wrong_arguments_are_explained(change: dict[str, Any], message: str) -> None:
    case = make_case(0, 2, 6, 4).cast(torch.float32)
    arguments: dict[str, Any] = {
        "student_hidden": case.student,
        "student_head": case.student_head,
        "teacher_hidden": case.teacher,
        "teacher_head": case.teacher_head,
        "labels": case.labels,
    }
    with pytest.raises(UsageError, match=message):
        distillation_loss(**{**arguments, **change})
