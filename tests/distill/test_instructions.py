"""Training on conversations: each as if alone, and nothing but its answers counts, wherever a loss is measured."""

import dataclasses
import json
import math
import shutil
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

from compress.base.errors import InputError, InterruptedRun, UsageError
from compress.data import TokenStore, prepare, text_rows
from compress.data.config import DataConfig
from compress.data.store import scores
from compress.data.store.marks import read_marks
from compress.data.store.order import START, extend
from compress.distill import DistillConfig
from compress.distill.rows import scoring
from compress.distill.rows.scoring import row_scores
from compress.distill.rows.selection import find_selection
from compress.distill.rows.source import StoreRows
from compress.distill.select import SelectConfig
from compress.evaluate import EvalConfig, evaluate_model
from compress.inference.readout import load_checkpoint
from compress.model.framing import Framing
from compress.prune.choose.calibration import load_calibration
from compress.prune.parts import Amount, CalibrationConfig
from compress.verify import verify_run

Options = Callable[..., DistillConfig]
Conversations = list[tuple[list[int], list[bool]]]
"""Token ids of each, and whether each is to be learned."""
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


@pytest.fixture
def selected(chats: World) -> World:
    """With a store of its own to keep scores in."""
    shutil.copytree(chats.data, chats.root / "data")
    return dataclasses.replace(chats, data=chats.root / "data")


def held_out(store: TokenStore) -> Conversations:
    return conversations_in(store.heldout(), store.heldout_marks())


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)


def kl_alone(teacher: Any, student: Any, found: Conversations) -> float:
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


def log_probs(model: Any, ids: list[int]) -> Any:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)


def scores_alone(by: str, found: Conversations, teacher: Any, student: Any) -> list[list[float]]:
    """How hard each token but the first of conversations run alone is, by the definitions, in float64."""
    values = []
    for ids, _ in found:
        log_p, log_q = log_probs(teacher, ids), log_probs(student, ids)
        label = torch.tensor(ids[1:])
        of_label = log_p.gather(1, label[:, None])[:, 0]
        measures = {
            "teacher_loss": -of_label,
            "teacher_wrong": log_p.argmax(-1) != label,
            "disagreement": 1 - of_label.exp(),
            "student_disagreement": (log_p.exp() * (log_p - log_q)).sum(-1),
        }
        values.append(measures[by].double().tolist())
    return values


def row_means(store: TokenStore, by: str, teacher: Any, student: Any) -> list[float]:
    """Of each training row, the mean score of what is to be learned of its conversations."""
    means = []
    for row in range(store.num_rows):
        found = conversations_in(store.rows([row]), store.marks([row]))
        scored = zip(found, scores_alone(by, found, teacher, student), strict=True)
        learned = [v for (_, marks), of in scored for v, mark in zip(of, marks[1:], strict=True) if mark]
        means.append(math.fsum(learned) / len(learned))
    return means


@pytest.mark.parametrize("by", ["teacher_loss", "teacher_wrong", "disagreement", "student_disagreement"])
def test_scores_are_those_of_answers_alone(chats: World, by: str) -> None:
    store = TokenStore.open(chats.data)
    rows = StoreRows(store, seed=0, epochs=1, num_heldout=0, apart=True, selection=None)
    guide, learner = (load_checkpoint(folder, device="cpu") for folder in (chats.teacher, chats.student))
    scores = row_scores(by, rows.read(np.arange(5)), guide, learner if by == "student_disagreement" else None)
    found = conversations_in(store.rows(range(5)), store.marks(range(5)))
    alone = scores_alone(by, found, load(chats.teacher), load(chats.student))
    learned = [v for (_, marks), of in zip(found, alone, strict=True) for v, m in zip(of, marks[1:], strict=True) if m]
    assert scores[~np.isnan(scores)] == pytest.approx(learned, abs=2e-5)
    assert 0 < len(learned) < scores.size / 2
    assert np.std(learned) > 1e-3


@pytest.mark.parametrize("by", ["teacher_loss", "student_disagreement"])
def test_rows_are_taken_and_read_by_their_answers(selected: World, options: Options, by: Any) -> None:
    store = TokenStore.open(selected.data)
    means = np.array(row_means(store, by, load(selected.teacher), load(selected.student)))
    low, high = round(0.25 * len(means)), round(0.75 * len(means))
    select = SelectConfig(by=by, from_=0.25, to=0.75)
    config = options(select=select, order="easy_to_hard", tokens=None, batch_tokens=4 * SEQ_LEN, heldout_sequences=4)
    done = selected.run("run", config)
    selection = find_selection(config, store, done.manifest["inputs"])
    assert selection is not None
    assert means[selection.rows] == pytest.approx(np.sort(means)[low:high], abs=1e-6)
    digest, hashes = START, []
    for start in range(0, high - low, 4):
        digest = extend(digest, selection.rows[start : start + 4])
        hashes.append(digest)
    assert [row["rows_sha256"] for row in selected.metrics("run") if "rows_sha256" in row] == hashes
    assert done.selection is not None
    assert (done.selection["taken"], done.selection["count"]) == (high - low, store.num_rows)
    assert done.selection["mean"] == pytest.approx(means.mean(), rel=1e-5)
    checks = {check.name: check for check in verify_run(selected.root / "run", data=selected.data)}
    for name in ("train: data order", "train: rows used once"):
        assert checks[name].status == "ok", checks[name]


def test_of_the_answers_those_tokens_are_learned_that_are_taken(selected: World, options: Options) -> None:
    """What the teacher gets right: the first step's loss is transformers' own over those tokens alone."""
    store, teacher = TokenStore.open(selected.data), load(selected.teacher)
    select = SelectConfig(by="teacher_wrong", of="tokens", to=0.0)
    config = options(alpha=0.0, select=select, tokens=None, batch_tokens=48 * SEQ_LEN, heldout_sequences=4)
    done = selected.run("run", config)

    def right(found: Conversations) -> Conversations:
        wrong = scores_alone("teacher_wrong", found, teacher, teacher)
        return [
            (ids, [m and not w for m, w in zip(marks, [1.0, *of], strict=True)])
            for (ids, marks), of in zip(found, wrong, strict=True)
        ]

    everything = conversations_in(store.rows(range(store.num_rows)), store.marks(range(store.num_rows)))
    taken = sum(sum(marks) for _, marks in right(everything))
    assert done.selection is not None
    assert (done.selection["taken"], done.selection["count"]) == (taken, sum(sum(m[1:]) for _, m in everything))
    first = store.row_ids(0, 48, seed=config.seed)
    batch = right(conversations_in(store.rows(first), store.marks(first)))
    total, count = answers_alone(load(selected.student), [(ids, m) for ids, m in batch if any(m)])
    assert 0 < count < taken
    assert selected.metrics("run")[1]["hard"] == pytest.approx(total / count, rel=1e-5)


def test_a_scoring_pass_that_was_stopped_goes_on(
    selected: World, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options(select=SelectConfig(of="tokens", to=0.5), tokens=None, batch_tokens=4 * SEQ_LEN)
    config = dataclasses.replace(config, heldout_sequences=4)
    shutil.copytree(selected.data, selected.root / "again")
    selected.run("whole", config)
    scored = []
    plain = scoring.row_scores

    def noted(by: str, batch: Any, *models: Any) -> Any:
        if len(scored) == 2 and "stop" not in scored:
            scored.append("stop")
            raise InterruptedRun("stopped")
        scored.append(len(batch))
        return plain(by, batch, *models)

    monkeypatch.setattr(scores, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(scoring, "row_scores", noted)
    with pytest.raises(InterruptedRun):
        selected.run("cut", config, data=selected.root / "again")
    selected.run("cut", config, data=selected.root / "again")
    assert sum(n for n in scored if n != "stop") == TokenStore.open(selected.data).num_rows
    weights = [(selected.root / name / "student" / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]
    kept = [next((selected.root / name).glob("scores-*")) for name in ("data", "again")]
    assert kept[0].name == kept[1].name
    assert all((kept[0] / file.name).read_bytes() == file.read_bytes() for file in kept[1].iterdir())


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
