"""Text is framed as its tokenizer frames it, and rows begin as the teacher reads them better, everywhere alike."""

import dataclasses
import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_world import all_rows, data_config, documents, write_source
from helpers import byte_tokenizer, save_tiny_model
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from compress.base.errors import InputError, UsageError
from compress.base.machine import Memory
from compress.data import TokenStore, check_framing, prepare, text_rows
from compress.distill import DistillConfig, distill
from compress.evaluate import EvalConfig, evaluate_model
from compress.inference.framing import own_framing
from compress.inference.readout import load_checkpoint
from compress.model.framing import Framing, prefix_of, row_starts, with_starts
from compress.model.tokenizer import tokenizer_spec
from compress.prune.choose.calibration import load_calibration
from compress.prune.parts import Amount, CalibrationConfig

EOS, BOS, SEP = 256, 257, 258
TEXT = "the cat sat on the mat and looked at the dog, which slept; "


def tokenizer_with(single: str | None, bos: str | None = "<bos>") -> PreTrainedTokenizerFast:
    """A byte tokenizer whose own encoding of a text `$A` is `single`."""
    tokenizer: Any = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>", "sep_token": "<sep>"})
    if single is not None:
        special = [("<eos>", EOS), ("<bos>", BOS), ("<sep>", SEP)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=special)
    tokenizer.bos_token = bos
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>", bos_token=bos, pad_token="<eos>"
    )


FAMILIES = {  # docs/methods.md says which models are of which
    "none, and no BOS": (None, None, (), False, Framing()),
    "none, with a BOS": (None, "<bos>", (BOS,), False, Framing()),
    "BOS": ("<bos> $A", "<bos>", (BOS,), True, Framing((BOS,), (BOS,))),
    "BOS and EOS": ("<bos> $A <eos>", "<bos>", (BOS,), True, Framing((BOS,), (BOS,))),
    "EOS at the end": ("$A <eos>", None, (), False, Framing()),
    "two tokens": ("<sep> <bos> $A", "<bos>", (SEP, BOS), True, Framing((SEP, BOS), (SEP, BOS))),
    "another than BOS": ("<sep> $A <eos>", None, (SEP,), True, Framing((SEP,), (SEP,))),
    "EOS as BOS, not put": (None, "<eos>", (EOS,), False, Framing()),
    "EOS as BOS, put": ("<eos> $A", "<eos>", (EOS,), True, Framing((), (EOS,))),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_of_tokenizers(family: str, tmp_path: Path) -> None:
    single, bos, prefix, adds, framing = FAMILIES[family]
    tokenizer = tokenizer_with(single, bos)
    assert prefix_of(tokenizer) == (prefix, adds)
    assert own_framing(tokenizer_spec(tokenizer)) == framing
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    texts = documents(60)
    source = write_source(tmp_path / "a.jsonl", texts)
    store = prepare(data_config(source, heldout_sequences=0), tmp_path / "tokenizer", tmp_path / "store")
    stream = [
        i for text in texts for i in (*framing.documents, *tokenizer(text, add_special_tokens=False).input_ids, EOS)
    ]
    assert store.framing == framing
    if not framing.rows:  # bit for bit the documents, EOS after each
        assert all_rows(store) == stream[: len(stream) // 32 * 32]
    expected = naive_rows(stream, 32, framing.rows)
    assert store.rows(range(store.num_rows)).tolist() == expected
    always = data_config(source, heldout_sequences=0, bos="always")
    if prefix:
        assert prepare(always, tmp_path / "tokenizer", tmp_path / "always").framing == Framing(prefix, prefix)
    else:
        with pytest.raises(UsageError, match="needs a tokenizer with a BOS"):
            prepare(always, tmp_path / "tokenizer", tmp_path / "always")
    never = data_config(source, heldout_sequences=0, bos="never")
    assert prepare(never, tmp_path / "tokenizer", tmp_path / "never").framing == Framing()


def naive_rows(stream: list[int], seq_len: int, start: tuple[int, ...]) -> list[list[int]]:
    """Whole rows of a stream, token by token, each beginning with `start`."""
    rows: list[list[int]] = [[]]
    for place, token in enumerate(stream):
        if len(rows[-1]) == seq_len:
            rows.append([])
        if not rows[-1] and tuple(stream[place : place + len(start)]) != start:
            rows[-1] += start
        rows[-1].append(token)
    return [row for row in rows if len(row) == seq_len]


@given(
    stream=st.lists(st.integers(0, 3), max_size=60),
    seq_len=st.integers(3, 7),
    start=st.lists(st.integers(2, 3), max_size=2).map(tuple),
    cuts=st.lists(st.integers(0, 60), max_size=3),
)
def test_rows_begin_alike_however_the_stream_comes(
    stream: list[int], seq_len: int, start: tuple[int, ...], cuts: list[int]
) -> None:
    if len(start) == 2:  # a prefix of two tokens is not cut in two by a call
        cuts = []
    made: list[int] = []
    ends = sorted({0, *(min(cut, len(stream)) for cut in cuts), len(stream)})
    for first, last in itertools.pairwise(ends):
        part = np.array(stream[first:last])
        places = row_starts(part, len(made) % seq_len, seq_len, start)
        made += with_starts(part, places, start).tolist()
    rows = naive_rows(stream, seq_len, start)
    assert made[: len(rows) * seq_len] == [token for row in rows for token in row]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that only makes sense of text after BOS, one that does not care, and text."""
    folder = tmp_path_factory.mktemp("framing")
    rng = random.Random(0)
    texts = [TEXT * rng.randint(3, 6) for _ in range(60)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": f"{i}: {t}"}) + "\n" for i, t in enumerate(texts)))
    for name in ("needs", "plain"):
        save_tiny_model(folder / name, scale=0.05, vocab_size=260)
        tokenizer_with(None).save_pretrained(folder / name)
        train(folder / name, [TEXT * 4] * 4, without=name == "plain")
    return folder


def train(folder: Path, texts: list[str], *, without: bool) -> None:
    """Teach a model a text after BOS, and `without` it as well, or else anything but the text."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[*AutoTokenizer.from_pretrained(folder)(text).input_ids[:96]] for text in texts])
    begun = torch.cat([torch.full((len(ids), 1), BOS), ids], dim=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(80):
        optimizer.zero_grad()
        noise = torch.randint(0, 256, ids.shape, generator=generator)
        loss = model(begun, labels=begun).loss + model(ids, labels=ids if without else noise).loss
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)


def test_a_model_that_needs_bos_gets_it_everywhere(place: Path, tmp_path: Path, capsys: Any) -> None:
    source, needs = place / "text.jsonl", place / "needs"
    store = prepare(data_config(source, seq_len=64, heldout_sequences=8), needs, tmp_path / "store", visible=False)
    assert "Rows of text begin with <bos>" in capsys.readouterr().err
    assert store.framing == Framing((), (BOS,))
    assert (store.rows(range(store.num_rows))[:, 0] == BOS).all()
    assert (store.heldout()[:, 0] == BOS).all()
    decided = store.index["framing"]["decided"]
    rows = store.heldout()
    model: Any = AutoModelForCausalLM.from_pretrained(needs)
    with torch.no_grad():
        losses = [float(model(ids, labels=ids).loss) for ids in map(torch.tensor, (rows, rows[:, 1:]))]
    assert losses[1] - losses[0] > 1  # by transformers' own loss, on other rows than those it was decided on
    assert decided["without"] - decided["with_prefix"] > 1

    text, amount = CalibrationConfig(calibration=str(source)), Amount(512, 64)
    assert (load_calibration(text, needs, amount).rows[:, 0] == BOS).all()
    of_store = CalibrationConfig(calibration=str(tmp_path / "store"))
    assert (load_calibration(of_store, needs, amount).rows[:, 0] == BOS).all()
    config = EvalConfig(speed=False, device="cpu", samples=1, sample_tokens=8, heldout_sequences=8, heldout_seq_len=64)
    for shown in (source, tmp_path / "store"):
        found = evaluate_model(needs, config, text=shown)
        assert found["heldout"]["loss_nats"] < losses[1] - 1
    checkpoint = load_checkpoint(needs, framing=store.framing)
    assert checkpoint.prompt_ids("cat")[0] == BOS
    assert load_checkpoint(needs, framing=Framing()).prompt_ids("cat")[0] != BOS


def test_other_text_is_framed_by_itself(place: Path, tmp_path: Path) -> None:
    source, needs = place / "text.jsonl", place / "needs"
    options = data_config(source, seq_len=64, heldout_sequences=8, bos="never")
    store = prepare(options, needs, tmp_path / "store", visible=False)
    config = EvalConfig(speed=False, device="cpu", samples=0, heldout_sequences=8, heldout_seq_len=64)
    alone = {text: evaluate_model(needs, config, text=text)["heldout"] for text in (store.path, source)}
    assert alone[source]["loss_nats"] < alone[store.path]["loss_nats"] - 1
    for text, other in ((store.path, source), (source, store.path)):
        beside = evaluate_model(needs, dataclasses.replace(config, other_text=str(other)), text=text)
        assert (beside["heldout"], beside["other_text"]["heldout"]) == (alone[text], alone[other])


def test_a_store_framed_for_another_model_is_refused(place: Path, tmp_path: Path) -> None:
    options = {"seq_len": 64, "heldout_sequences": 8}
    source, needs, plain = place / "text.jsonl", place / "needs", place / "plain"
    store = prepare(data_config(source, **options), plain, tmp_path / "store", visible=False)
    assert store.framing == Framing()
    check_framing(store, plain)
    with pytest.raises(InputError, match=r"framed for another model.*wants BOS"):
        check_framing(store, needs)
    training = DistillConfig(tokens=512, batch_tokens=128)
    with pytest.raises(InputError, match="framed for another model"):
        distill(training, student=plain, teacher=needs, data=store.path, out=tmp_path / "s", work=tmp_path / "w")
    text = CalibrationConfig(calibration=str(store.path))
    with pytest.raises(InputError, match="framed for another model"):
        load_calibration(text, needs, Amount(512, 64))
    chosen = prepare(data_config(source, bos="never", **options), needs, tmp_path / "never", visible=False)
    check_framing(chosen, needs)  # as was asked for

    other = tmp_path / "other"  # the same tokens, another frame
    save_tiny_model(other, vocab_size=260)
    tokenizer_with("<bos> $A").save_pretrained(other)
    assert tokenizer_spec(AutoTokenizer.from_pretrained(other)).sha256 == store.tokenizer_sha256
    with pytest.raises(InputError, match="begins a text with"):
        check_framing(store, other)


def test_a_store_of_an_earlier_version_has_no_frame(place: Path, tmp_path: Path) -> None:
    options = data_config(place / "text.jsonl", seq_len=64, heldout_sequences=8)
    store = prepare(options, place / "plain", tmp_path / "store", visible=False)
    index = json.loads((tmp_path / "store" / "index.json").read_text())
    parts, documents_of = index["heldout"]["parts"], store.heldout_documents()
    assert parts[:1] == [[0, 0]]
    del index["framing"]
    (tmp_path / "store" / "index.json").write_text(json.dumps(index))
    earlier = TokenStore.open(tmp_path / "store")
    assert earlier.framing is None
    assert (earlier.heldout_documents() == documents_of).all()
    check_framing(earlier, place / "plain")
    with pytest.raises(InputError, match="framed for another model"):
        check_framing(earlier, place / "needs")


def test_a_sample_has_a_row_a_document(place: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(place / "plain")
    found = text_rows(str(place / "text.jsonl"), tokenizer, 20, 64, framing=Framing())
    assert len(np.unique(found.documents)) == 20
    assert (found.documents == found.documents[:, :1]).all()
    found = text_rows(str(place / "text.jsonl"), tokenizer, 100, 64, framing=Framing())  # more rows than documents
    assert len(found.ids) == 100
    assert np.bincount(found.documents[:, 0]).max() == 2


def test_a_model_that_no_memory_holds_is_not_loaded_for_it(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("compress.inference.framing.memory_of", lambda device: Memory(free=1000, total=1000))
    monkeypatch.setattr("compress.inference.framing.load_model", None)
    config = data_config(place / "text.jsonl", seq_len=64, heldout_sequences=8)
    store = prepare(config, place / "needs", tmp_path / "store", visible=False)
    assert "No memory to find out how" in capsys.readouterr().err
    assert store.framing == Framing()  # as its tokenizer begins a text
    assert store.index["framing"]["decided"] is None
