"""Training on conversations: each as if alone, and nothing but its answers counts, wherever a loss is measured."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_world import CHATML, answers_alone, chat_tokenizer, conversations_in, write_chats
from data_world import documents
from distill_world import World
from helpers import save_tiny_model
from transformers import AutoModelForCausalLM

from compress.base.errors import InputError, UsageError
from compress.data import TokenStore, prepare, text_rows
from compress.data.config import DataConfig
from compress.data.store.marks import read_marks
from compress.distill import DistillConfig
from compress.evaluate import EvalConfig, evaluate_model
from compress.model.framing import Framing
from compress.prune.choose.calibration import load_calibration
from compress.prune.parts import Amount, CalibrationConfig

Options = Callable[..., DistillConfig]
SEQ_LEN = 192
CALM = {"speed": False, "device": "cpu", "samples": 0, "responses": 0, "heldout_sequences": 4}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two models whose tokenizer has a chat template, and a store of short chats."""
    root = tmp_path_factory.mktemp("chats")
    folders = [
        save_tiny_model(root / name, seed=seed, scale=0.1, num_hidden_layers=layers, vocab_size=261)
        for seed, (name, layers) in enumerate((("teacher", 2), ("student", 1)))
    ]
    for folder in folders:
        chat_tokenizer(CHATML).save_pretrained(folder)
    texts = [text[:16] for text in documents(600, 7)]
    write_chats(root / "chats.jsonl", [texts[i : i + 2] for i in range(0, 600, 2)])
    store_of(root, folders[0], "data")
    return World(root, folders[0], folders[1], root / "data")


def store_of(root: Path, tokenizer: Path, name: str, **options: Any) -> TokenStore:
    """The chats of `root` as a store."""
    config = DataConfig(dataset=str(root / "chats.jsonl"), seq_len=SEQ_LEN, heldout_sequences=4, **options)
    return prepare(config, tokenizer, root / name, visible=False)


@pytest.fixture
def chats(models: World, tmp_path: Path) -> World:
    return dataclasses.replace(models, root=tmp_path)


def held_out(store: TokenStore) -> list[tuple[list[int], list[bool]]]:
    return conversations_in(store.heldout(), store.heldout_marks())


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)


def kl_alone(teacher: Any, student: Any, found: list[tuple[list[int], list[bool]]]) -> float:
    """Mean of KL(teacher || student), nats, over what is to be learned of conversations run alone."""
    values: list[float] = []
    for ids, learned in found:
        with torch.no_grad():
            log_p, log_q = (m(torch.tensor([ids])).logits[0, :-1].log_softmax(-1) for m in (teacher, student))
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        values += kl[torch.tensor(learned[1:])].tolist()
    return math.fsum(values) / len(values)


def test_losses_are_those_of_answers_alone(chats: World, options: Options) -> None:
    config = options(tokens=SEQ_LEN * 8, batch_tokens=SEQ_LEN * 4, log_every=1, heldout_sequences=4)
    chats.run("run", config)
    rows = chats.metrics("run")
    store = TokenStore.open(chats.data)
    teacher, student = load(chats.teacher), load(chats.student)
    found = held_out(store)
    assert len(found) > 4
    total, count = answers_alone(student, found)
    assert rows[0]["heldout_hard"] == pytest.approx(total / count, rel=1e-5)
    assert rows[0]["heldout_kl"] == pytest.approx(kl_alone(teacher, student, found), rel=1e-4)

    first = store.row_ids(0, 4, seed=config.seed)
    batch = conversations_in(store.rows(first), store.marks(first))
    total, count = answers_alone(student, batch)
    assert rows[1]["hard"] == pytest.approx(total / count, rel=1e-5)
    assert rows[1]["soft"] == pytest.approx(kl_alone(teacher, student, batch), rel=1e-4)


def test_micro_batches_without_an_answer_change_nothing(chats: World, options: Options) -> None:
    config = options(tokens=SEQ_LEN * 8, batch_tokens=SEQ_LEN * 4, log_every=1, heldout_sequences=4)
    losses = []
    for rows in (1, 4):
        chats.run(f"run-{rows}", dataclasses.replace(config, micro_batch_rows=rows))
        losses.append([row["loss"] for row in chats.metrics(f"run-{rows}") if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_together_a_row_is_one_sequence(chats: World, options: Options) -> None:
    (chats.root / "chats.jsonl").write_bytes((chats.data.parent / "chats.jsonl").read_bytes())
    store = store_of(chats.root, chats.teacher, "together", apart=False)
    assert store.fingerprint != TokenStore.open(chats.data).fingerprint
    assert (store.rows(range(3)) == TokenStore.open(chats.data).rows(range(3))).all()
    config = options(tokens=SEQ_LEN * 4, batch_tokens=SEQ_LEN * 4, heldout_sequences=4)
    chats.run("run", config, data=store.path)
    ids, marks = store.heldout(), store.heldout_marks()
    assert marks is not None
    rows = [(row.tolist(), learned.tolist()) for row, learned in zip(ids, marks.answers, strict=True)]
    total, count = answers_alone(load(chats.student), rows)
    assert chats.metrics("run")[0]["heldout_hard"] == pytest.approx(total / count, rel=1e-5)
    measured = evaluate_model(chats.student, EvalConfig(**CALM), text=store.path)["heldout"]
    assert measured["loss_nats"] == pytest.approx(total / count, rel=1e-5)


def test_an_evaluation_scores_answers_alone(chats: World) -> None:
    store, raw = TokenStore.open(chats.data), str(chats.data.parent / "chats.jsonl")
    teacher, student = load(chats.teacher), load(chats.student)
    found = held_out(store)
    total, count = answers_alone(student, found)
    measured = evaluate_model(chats.student, EvalConfig(**CALM), teacher=chats.teacher, text=store.path)
    held, near = measured["heldout"], measured["fidelity"]
    assert (held["tokens"], held["documents"], near["tokens"]) == (count, len(found), count)
    assert held["loss_nats"] == pytest.approx(total / count, rel=1e-5)
    assert near["kl_nats"] == pytest.approx(kl_alone(teacher, student, found), rel=1e-4)
    # bytes of what is learned: with this tokenizer one a token, but for the ends of turns
    ends = sum(ids[place] > 255 for ids, learned in found for place in np.flatnonzero(learned))
    assert held["bits_per_byte"] == pytest.approx(total / math.log(2) / (count - ends), rel=1e-5)
    for by in ("by_position", "by_token", "by_frequency"):
        assert sum(part["tokens"] for part in held[by].values()) == count
    sample = evaluate_model(chats.student, EvalConfig(**CALM, heldout_seq_len=SEQ_LEN), text=raw)["heldout"]
    assert sample["documents"] > 4
    rows = text_rows(raw, chat_tokenizer(CHATML), 4, SEQ_LEN, framing=Framing())
    assert rows.marks is not None
    expected = answers_alone(student, conversations_in(rows.ids, read_marks(rows.marks)))
    assert (sample["loss_nats"], sample["tokens"]) == (pytest.approx(expected[0] / expected[1], rel=1e-5), expected[1])


def test_layers_are_measured_on_conversations(chats: World) -> None:
    raw = str(chats.data.parent / "chats.jsonl")
    for source in (str(chats.data), raw):
        found = load_calibration(CalibrationConfig(calibration=source), chats.teacher, Amount(4 * SEQ_LEN, SEQ_LEN))
        assert found.rows.shape == (4, SEQ_LEN)
        assert (found.rows[:, 0] == 257).all()  # each begins with a conversation


def test_a_model_that_cannot_keep_them_apart_is_told_how(chats: World, options: Options) -> None:
    mamba = save_tiny_model(chats.root / "mamba", "mamba", state_size=4, vocab_size=261)
    chat_tokenizer(CHATML).save_pretrained(mamba)
    with pytest.raises(UsageError, match=r"data\.apart"):
        chats.run("run", options(alpha=0.0, batch_tokens=SEQ_LEN, tokens=SEQ_LEN), student=mamba, teacher=None)


def test_conversations_are_not_selected_from(chats: World, options: Options) -> None:
    with pytest.raises(UsageError, match="score rows of text, and these are conversations"):
        chats.run("run", options(order="easy_to_hard", batch_tokens=SEQ_LEN, tokens=SEQ_LEN))
    assert not list(chats.data.glob("scores-*"))


def test_marks_must_belong_to_their_store(chats: World) -> None:
    copy = chats.root / "copy"
    copy.mkdir()
    for path in chats.data.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    index = json.loads((copy / "index.json").read_text())
    del index["instructions"]
    (copy / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="was changed after it was written"):
        TokenStore.open(copy)
