"""Healing masked language models: what is hidden, the loss on it, and runs that stop."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distill_world import World, losses_of, setting_of
from encoder_world import VOCABULARY, encoder_tokenizer, save_encoder, write_text
from transformers import AutoModelForMaskedLM

from compress.base.disk import sha256_tree
from compress.base.errors import UsageError
from compress.data import DataConfig, TokenStore, prepare
from compress.distill import DistillConfig
from compress.distill.config import SimilarityConfig, Weights
from compress.distill.objective.loss import IGNORE_INDEX
from compress.distill.rows.masking import Masking
from compress.distill.rows.source import StoreRows, packed
from compress.prune import prune

Options = Callable[..., DistillConfig]
MASK, SPECIAL, VOCAB = 4, (0, 1, 2, 3, 4), 1000


def some_rows(count: int, length: int = 64, vocabulary: int = VOCAB) -> Any:
    ids = np.random.default_rng(0).integers(0, vocabulary, (count, length))
    return packed(ids, np.arange(count) + 10)


def test_what_is_hidden_in_a_row_depends_on_seed_epoch_and_row_and_not_on_its_batch() -> None:
    masking, rows = Masking(MASK, SPECIAL, VOCAB, seed=3), some_rows(6)
    whole = masking(rows, np.array([0, 0, 0, 1, 1, 1]))
    for order in ([4], [5, 0, 2]):
        part = masking(rows.take(np.array(order)), np.array([0, 0, 0, 1, 1, 1])[order])
        assert np.array_equal(part.ids, whole.ids[order])
        assert np.array_equal(part.labels, whole.labels[order])
    later = masking(rows, np.ones(6, np.int64))
    assert [np.array_equal(*pair) for pair in zip(later.labels, whole.labels, strict=True)] == [False] * 3 + [True] * 3
    assert not np.array_equal(dataclasses.replace(masking, seed=4)(rows, np.zeros(6, np.int64)).ids[0], whole.ids[0])
    held = [dataclasses.replace(masking, seed=seed).heldout(rows).ids for seed in (1, 2)]
    assert np.array_equal(*held)


def test_15_percent_are_chosen_and_of_those_80_percent_hidden_10_random_and_10_left() -> None:
    rows = some_rows(400)
    found = Masking(MASK, SPECIAL, VOCAB, seed=0)(rows, np.zeros(400, np.int64))
    tokens, after, labels = rows.ids[:, :-1], found.ids[:, :-1], found.labels
    chosen, text = labels != IGNORE_INDEX, ~np.isin(tokens, SPECIAL)
    assert np.array_equal(labels[chosen], tokens[chosen])
    assert np.array_equal(after[~chosen], tokens[~chosen])
    assert np.array_equal(found.ids[:, -1], rows.ids[:, -1])
    assert not (chosen & ~text).any()

    def within(count: int, of: int, share: float) -> bool:
        """At most four standard deviations of a binomial away."""
        return abs(count - of * share) <= 4 * (of * share * (1 - share)) ** 0.5

    number = int(chosen.sum())
    assert within(number, int(text.sum()), 0.15)
    hidden, same = chosen & (after == MASK), chosen & (after == tokens)
    assert within(int(hidden.sum()), number, 0.8 + 0.1 / VOCAB)
    assert within(int(same.sum()), number, 0.1 + 0.1 / VOCAB)
    random = after[chosen & ~hidden & ~same]
    assert within(int((random < VOCAB // 2).sum()), len(random), 0.5)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "modernbert", "deberta-v2"])
def test_the_loss_is_of_hidden_places_as_in_float64(model_type: str, options: Options, tmp_path: Path) -> None:
    folders = [save_encoder(tmp_path / str(seed), model_type, seed=seed, layers=2) for seed in (1, 2)]
    student, teacher = (AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32) for folder in folders)
    rows = some_rows(5, 24, len(VOCABULARY))
    batch = Masking.of(encoder_tokenizer(), len(VOCABULARY), seed=0)(rows, np.zeros(5, np.int64))
    config = options(alpha=0.7, temperature=2.0, micro_batch_rows=2)
    losses = losses_of(config, student, teacher, tmp_path)
    found = losses.measure(losses.share(batch), setting_of(config))

    chosen, ids = torch.from_numpy(batch.labels != IGNORE_INDEX), torch.from_numpy(batch.ids)
    with torch.no_grad():
        z, wanted = (model.double().eval()(input_ids=ids).logits[:, :-1][chosen] for model in (student, teacher))
    labels = torch.from_numpy(batch.labels)[chosen]
    hard = torch.nn.functional.cross_entropy(z, labels).item()
    p, q = (logits.div(2).log_softmax(-1) for logits in (wanted, z))
    soft = 4 * (p.exp() * (p - q)).sum(-1).mean().item()
    assert found["hard"] == pytest.approx(hard, rel=1e-5)
    assert found["soft"] == pytest.approx(soft, rel=1e-4)
    assert found["loss"] == pytest.approx(0.7 * soft + 0.3 * hard, rel=1e-4)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("encoders")
    teacher = save_encoder(root / "teacher")
    prune(str(teacher), root / "student", "0,3")
    text = write_text(root / "text.jsonl")
    prepare(DataConfig(dataset=str(text), seq_len=32, heldout_sequences=6), tokenizer=teacher, out=root / "data")
    return World(root, teacher, root / "student", root / "data")


def test_a_run_stopped_in_its_second_epoch_ends_bitwise_equal(
    encoders: World, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, and with the terms of hidden states and relations."""
    terms = {"weights": Weights(hidden=0.3, similarity=0.5), "similarity": SimilarityConfig(pairs=((0, 1),))}
    config = options(epochs=2, tokens=None, batch_tokens=24 * 32, checkpoint_every=0, **terms)
    encoders.run("whole", config)
    encoders.run_stopped("cut", config, 6, monkeypatch)
    encoders.run("cut", config)
    cut, whole = (sha256_tree(encoders.root / name / "student", "*.safetensors") for name in ("cut", "whole"))
    assert cut == whole
    drop = ("tokens_per_s", "peak_gib", "mfu")
    logged = [
        [{key: value for key, value in row.items() if key not in drop} for row in encoders.metrics(name)]
        for name in ("cut", "whole")
    ]
    assert logged[0] == logged[1]
    rows = [row for row in logged[0] if "heldout_kl" in row]
    assert rows[-1]["heldout_kl"] < rows[0]["heldout_kl"]


def test_rows_of_another_epoch_hide_other_tokens(encoders: World) -> None:
    store = TokenStore.open(encoders.data)
    rows = StoreRows(store, 0, 2, 2, False, None, Masking.of(encoder_tokenizer(), len(VOCABULARY), 0))
    first = rows.read(np.array([0, 1]), position=0)
    across = rows.read(np.array([0, 1]), position=store.num_rows - 1)
    assert np.array_equal(first.labels[0], across.labels[0])
    assert not np.array_equal(first.labels[1], across.labels[1])
    assert (first.ids[:, 0] == encoder_tokenizer().cls_token_id).all()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"on_policy": {"fraction": 0.5}}, "on_policy"),
        ({"select": {"by": "teacher_loss", "to": 0.9}}, "select"),
        ({"order": "easy_to_hard"}, "easy_to_hard"),
        ({"document_mask": True}, "document_mask"),
        ({"divergence": "uld"}, "uld"),
    ],
)
def test_what_is_for_causal_models_is_refused_by_name(encoders: World, changes: dict[str, Any], named: str) -> None:
    from compress.base.config import build_from

    config = build_from(DistillConfig, {"batch_tokens": 512, **changes}, "distill")
    with pytest.raises(UsageError, match=f"{named}.* is for causal language models, and .*student is a masked one"):
        encoders.run("refused", config)


def test_a_causal_teacher_does_not_teach_a_masked_student(encoders: World, world: World, options: Options) -> None:
    with pytest.raises(UsageError, match=r"is a masked language model and .* is a causal language model"):
        encoders.run("mixed", options(), teacher=world.teacher)
