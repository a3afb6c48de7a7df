"""Held-out loss and fidelity against a dense float64 computation from `model(...).logits`."""

import functools
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_close, byte_tokenizer, save_tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.base.errors import InputError
from compress.evaluate.text.language import compare_tokens, heldout_scores
from compress.evaluate.text.token_classes import FREQUENCIES, KINDS, group_tokens
from compress.inference.readout import Checkpoint, load_checkpoint

load = functools.partial(load_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("language")
    return {
        "model": save_tiny_model(folder / "model", seed=1),
        "teacher": save_tiny_model(folder / "teacher", seed=2),
        "padded": save_tiny_model(folder / "padded", seed=3, vocab_size=320),
        "gemma2": save_tiny_model(
            folder / "gemma2", "gemma2", seed=4, head_dim=8, final_logit_softcapping=5.0, sliding_window=8
        ),
        "opt": save_tiny_model(folder / "opt", "opt", seed=5, word_embed_proj_dim=32, ffn_dim=64),
    }


def rows(count: int = 5, length: int = 21) -> np.ndarray:
    text = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all. " * 3
    ids = byte_tokenizer()(text)["input_ids"][: count * length]
    return np.array(ids, dtype=np.int64).reshape(count, length)


def dense(checkpoint: Checkpoint, ids: np.ndarray) -> torch.Tensor:
    """float64 logits [n (S - 1), V] of the model itself."""
    with torch.no_grad():
        return checkpoint.model(torch.from_numpy(ids)).logits[:, :-1].flatten(0, 1).double()


@pytest.mark.parametrize("name", ["model", "gemma2", "opt"])
def test_loss_perplexity_and_bits_per_byte_are_the_dense_ones(
    models: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.inference.readout._CHUNK_LOGITS", 7 * 257)
    checkpoint, ids = load(models[name]), rows()
    found, fidelity = heldout_scores(checkpoint, ids, 80, batch_tokens=50)
    labels = torch.from_numpy(ids[:, 1:]).flatten()
    loss = torch.nn.functional.cross_entropy(dense(checkpoint, ids), labels).item()
    assert fidelity is None
    assert found["tokens"] == 100
    assert found["loss_nats"] == pytest.approx(loss, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(loss / math.log(2) * 100 / 80, rel=1e-6)


def test_fidelity_is_the_dense_one(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.inference.readout._CHUNK_LOGITS", 11 * 257)
    model, teacher, ids = load(models["model"]), load(models["teacher"]), rows()
    _, found = heldout_scores(model, ids, 100, teacher=teacher, batch_tokens=64)
    p, q = dense(teacher, ids).softmax(-1), dense(model, ids).softmax(-1)
    m = (p + q) / 2
    kl = (p * (p / q).log()).sum(-1).mean().item()
    js = ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)).mean().item() / 2
    assert found is not None
    assert found["kl_nats"] == pytest.approx(kl, rel=1e-5)
    assert found["js_nats"] == pytest.approx(js, rel=1e-5)
    assert found["top1_agreement"] == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item())
    assert found["tokens"] == 100
    assert found["acceptance_rate"] == pytest.approx(1 - (p - q).abs().sum(-1).mean().item() / 2, rel=1e-5)
    best = [[set(row.argsort()[-5:].tolist()) for row in each.numpy()] for each in (p, q)]
    overlap = [len(a & b) / 5 for a, b in zip(*best, strict=True)]
    assert found["top5_agreement"] == pytest.approx(sum(overlap) / 100)


def test_kl_by_class_and_its_standard_error_are_the_dense_ones(models: dict[str, Path]) -> None:
    model, teacher, ids = load(models["model"]), load(models["teacher"]), rows()
    held, found = heldout_scores(model, ids, 100, teacher=teacher, batch_tokens=64)
    log_p, log_q = dense(teacher, ids).log_softmax(-1), dense(model, ids).log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).reshape(5, 20).numpy()
    loss = -log_q.gather(1, torch.from_numpy(ids[:, 1:]).reshape(-1, 1)).reshape(5, 20).numpy()
    assert found is not None
    assert found["kl_nats_stderr"] == pytest.approx(kl.mean(1).std(ddof=1) / math.sqrt(5), rel=1e-4)
    assert held["loss_nats_stderr"] == pytest.approx(loss.mean(1).std(ddof=1) / math.sqrt(5), rel=1e-4)
    spans = {"1": (0, 1), "2-3": (1, 3), "4-7": (3, 7), "8-15": (7, 15), "16-20": (15, 20)}
    assert {label: entry["tokens"] for label, entry in found["by_position"].items()} == {
        label: 5 * (end - start) for label, (start, end) in spans.items()
    }
    for label, (start, end) in spans.items():
        assert found["by_position"][label]["kl_nats"] == pytest.approx(kl[:, start:end].mean(), rel=1e-4)
        assert held["by_position"][label]["loss_nats"] == pytest.approx(loss[:, start:end].mean(), rel=1e-4)
    text = [model.tokenizer.decode(row) for row in ids]
    spaces = np.array([[character == " " for character in row[1:]] for row in text])
    assert found["by_token"]["space"]["kl_nats"] == pytest.approx(kl[spaces].mean(), rel=1e-4)
    first = np.array([[a == " " and b.isalpha() for a, b in itertools.pairwise(row)] for row in text])
    assert found["by_token"]["word_start"]["tokens"] == first.sum()
    assert found["by_token"]["word_start"]["kl_nats"] == pytest.approx(kl[first].mean(), rel=1e-4)
    for name in ("by_position", "by_token", "by_frequency"):
        assert sum(entry["tokens"] for entry in found[name].values()) == 100
        mean = sum(entry["tokens"] * entry["kl_nats"] for entry in found[name].values()) / 100
        assert mean == pytest.approx(found["kl_nats"], rel=1e-9)


def test_token_kinds_and_frequencies_by_hand() -> None:
    tokenizer = byte_tokenizer()
    ids = np.array([[*tokenizer("a b12, cd\nef7g")["input_ids"], 256, *tokenizer("x")["input_ids"]]])
    kinds = group_tokens(ids, tokenizer)["token"]
    assert [KINDS[code][:7] for code in kinds.codes[0]] == [
        "space", "word_st", "digit", "digit", "punctua", "space", "word_st", "word_in", "space", "word_st", "word_in",
        "digit", "word_in", "special", "word_st",
    ]  # fmt: skip
    counted = group_tokens(np.array([[9, *[1] * 5, *[2] * 4, 3]]), tokenizer)["frequency"]
    assert [FREQUENCIES[code] for code in counted.codes[0]] == ["frequent"] * 5 + ["medium"] * 4 + ["rare"]


def test_a_draft_is_accepted_as_often_as_speculative_sampling_accepts_it() -> None:
    """Leviathan et al., algorithm 1: x ~ q is kept with probability min(1, p(x) / q(x))."""
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(8)), rng.dirichlet(np.ones(8))
    drawn = rng.choice(8, size=200_000, p=q)
    kept = rng.random(len(drawn)) < np.minimum(1, p[drawn] / q[drawn])
    found = compare_tokens(torch.from_numpy(p[None]).log(), torch.from_numpy(q[None]).log()).accepted.item()
    assert found == pytest.approx(kept.mean(), abs=4 * math.sqrt(0.25 / len(drawn)))


def test_a_model_is_perfectly_faithful_to_itself(models: dict[str, Path]) -> None:
    model = load(models["model"])
    _, found = heldout_scores(model, rows(), 100, teacher=model)
    assert found is not None
    assert (found["kl_nats"], found["top1_agreement"], found["top5_agreement"], found["tokens"]) == (0.0, 1.0, 1.0, 100)
    assert found["js_nats"] == pytest.approx(0.0, abs=1e-7)
    assert found["acceptance_rate"] == pytest.approx(1.0, abs=1e-6)


def test_a_padded_vocabulary_is_compared_over_the_shared_ids(models: dict[str, Path]) -> None:
    model, teacher, ids = (
        load(models["model"]),
        load(models["padded"]),
        rows(),
    )
    _, found = heldout_scores(model, ids, 100, teacher=teacher)
    p, q = dense(teacher, ids)[:, :257].log_softmax(-1), dense(model, ids).log_softmax(-1)
    assert found is not None
    assert found["kl_nats"] == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-5)


logits = st.lists(st.floats(-30, 30), min_size=4, max_size=4)


@settings(max_examples=200, deadline=None)
@given(logits, logits)
def test_divergences_are_non_negative_js_is_symmetric_and_bounded(a: list[float], b: list[float]) -> None:
    p, q = torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)
    found, back = compare_tokens(p, q), compare_tokens(q, p)
    assert found.kl.item() >= -1e-12
    assert -1e-12 <= found.js.item() <= math.log(2) + 1e-12
    assert found.js.item() == pytest.approx(back.js.item(), abs=1e-12)
    assert found.accepted.item() == pytest.approx(back.accepted.item(), abs=1e-12)
    # Pinsker: (total variation = 1 - accepted)^2 <= KL / 2, which is rounded to 1e-15 or so.
    assert (1 - found.accepted.item()) ** 2 <= found.kl.item() / 2 + 1e-14


def test_disjoint_distributions_reach_the_bound_and_masked_ids_do_no_harm() -> None:
    minus = float("-inf")
    found = compare_tokens(torch.tensor([[0.0, -1e4, minus]]), torch.tensor([[-1e4, 0.0, minus]]))
    assert found.js.item() == pytest.approx(math.log(2), rel=1e-6)
    assert found.accepted.item() == 0
    assert not found.top1.item()


@pytest.mark.parametrize("broken", ["model", "teacher"])
def test_logits_that_are_no_numbers_are_refused_by_name(models: dict[str, Path], broken: str) -> None:
    pair = {name: load(models[name]) for name in ("model", "teacher")}
    with torch.no_grad():
        pair[broken].model.base_model.norm.weight[3] = math.nan
    with pytest.raises(InputError, match=rf"{broken} gives NaN.*eval\.dtype=float32"):
        heldout_scores(pair["model"], rows(), 80, teacher=pair["teacher"])


def test_rows_that_the_memory_does_not_hold_are_halved(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = [load(models[name]) for name in ("model", "teacher")]
    whole = heldout_scores(pair[0], rows(), 80, teacher=pair[1])
    states, sizes = Checkpoint.states, []

    def limited(self: Checkpoint, ids: torch.Tensor) -> torch.Tensor:
        sizes.append(len(ids))
        if len(ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return states(self, ids)

    monkeypatch.setattr(Checkpoint, "states", limited)
    parts = heldout_scores(pair[0], rows(), 80, teacher=pair[1])
    assert sum(size for size in sizes if size <= 2) == 2 * 5
    for found, expected in zip(parts, whole, strict=True):
        assert found is not None
        assert expected is not None
        assert_close(found, expected, rel=1e-6)


def test_bf16_models_are_scored_from_float32_logits(models: dict[str, Path]) -> None:
    checkpoint, ids = load(models["model"], dtype="bfloat16"), rows()
    with torch.no_grad():
        hidden = checkpoint.model.base_model(torch.from_numpy(ids)).last_hidden_state[:, :-1].flatten(0, 1).double()
    exact = hidden @ checkpoint.model.get_output_embeddings().weight.double().T
    loss = torch.nn.functional.cross_entropy(exact, torch.from_numpy(ids[:, 1:]).flatten()).item()
    assert heldout_scores(checkpoint, ids, 100)[0]["loss_nats"] == pytest.approx(loss, rel=1e-6)


def test_text_of_another_vocabulary_and_another_tokenizer_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    model = load(models["model"])
    with pytest.raises(InputError, match="token id 300"):
        heldout_scores(model, np.full((2, 5), 300), 8)
    with pytest.raises(InputError, match="no held-out text"):
        heldout_scores(model, np.zeros((0, 5), dtype=np.int64), 0)
    other = load(models["teacher"])
    other.tokenizer.add_tokens(["<new>"])
    with pytest.raises(InputError, match=r"different tokenizers.*<new>"):
        heldout_scores(model, rows(), 100, teacher=other)
