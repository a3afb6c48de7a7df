"""What a token store holds: exactly the documents, in one stream, whatever they came in; held-out text never leaks."""

import importlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from data_world import (
    EOS,
    FORMATS,
    all_rows,
    content,
    data_config,
    documents,
    naive_split,
    normal_form,
    stream_of,
    trained_tokenizer,
    write_source,
)
from helpers import SHARED_DATA, byte_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compress.base.config import build_from
from compress.base.errors import UsageError
from compress.data import DataConfig, TokenStore, prepare
from compress.data.store import encode, shards
from compress.data.store.encode import Encoder, split_pieces
from compress.model.tokenizer import tokenizer_fingerprint, tokenizer_spec


def test_rows_are_the_documents_in_order(tmp_path: Path, tokenizer_folder: Path) -> None:
    texts = documents(60)
    source = write_source(tmp_path / "a.jsonl", texts)
    store = prepare(data_config(source, heldout_sequences=0), tokenizer_folder, tmp_path / "store")
    expected = stream_of(texts, byte_tokenizer())
    assert all_rows(store) == expected[: len(expected) // 32 * 32]
    assert store.num_heldout == 0
    assert store.index["documents"] == 60
    assert store.index["text_bytes"] == sum(len(text.encode()) for text in texts)
    decoded = byte_tokenizer().decode(all_rows(store)).split("<eos>")
    assert decoded[:-1] == texts[: len(decoded) - 1]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**63 - 1), heldout=st.integers(1, 8), data_seed=st.integers(0, 99), count=st.integers(30, 400)
)
def test_the_split_is_the_definition_recomputed_naively(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer_folder: Path,
    seed: int,
    heldout: int,
    data_seed: int,
    count: int,
) -> None:
    folder = tmp_path_factory.mktemp("split")
    texts = documents(count, data_seed, near=0.1)
    config = data_config(write_source(folder / "a.parquet", texts), heldout_sequences=heldout, seed=seed)
    store = prepare(config, tokenizer_folder, folder / "store", visible=False)
    training, held_out, share = naive_split(texts, heldout, 32, seed % 2**64)
    expected = stream_of(training, byte_tokenizer())
    assert all_rows(store) == expected[: len(expected) // 32 * 32]
    assert not set(map(normal_form, training)) & set(map(normal_form, held_out))
    copies = len(texts) - len(training) - len(held_out)
    assert store.index["skipped"]["heldout_copies"] == copies

    rows, of = store.heldout(), store.heldout_documents()
    streams = [stream_of([text], byte_tokenizer()) for text in held_out]
    long = [len(ids) > share * 32 for ids in streams]
    alone = [n for n in range(heldout) if long[of[n, 0]]]
    for row in alone:  # the rows of a long document are pieces of it, as many as each gives
        assert (of[row] == of[row, 0]).all()
        assert rows[row].tolist() in [streams[of[row, 0]][i : i + 32] for i in range(len(streams[of[row, 0]]) - 31)]
    for document in range(len(held_out)):
        assert not long[document] or sum(of[row, 0] == document for row in alone) in range(share + 1)
    together = [n for n in range(heldout) if n not in alone]  # shorter ones follow each other
    stream = [(token, n) for n, ids in enumerate(streams) if not long[n] for token in ids]
    found = list(zip(rows[together].ravel().tolist(), of[together].ravel().tolist(), strict=True))
    assert found == stream[: len(found)]
    assert store.index["heldout"]["documents"] == len(set(of.ravel().tolist()))


def test_heldout_rows_come_from_as_many_documents(tmp_path: Path, tokenizer_folder: Path) -> None:
    books = [f"{number} ".join(documents(60, number)) for number in range(40)]
    rows = 12
    store = prepare(
        data_config(write_source(tmp_path / "a.jsonl", books), heldout_sequences=rows, tokens=640),
        tokenizer_folder,
        tmp_path / "store",
    )
    assert store.index["heldout"]["documents"] == rows  # of books that would fill all of them alone
    assert len({first for first, *_ in store.heldout_documents().tolist()}) == rows
    few = data_config(write_source(tmp_path / "b.jsonl", books[:8]), heldout_sequences=rows, tokens=640)
    store = prepare(few, tokenizer_folder, tmp_path / "few")  # eight books: some must be left for training
    assert store.num_rows == 20
    assert 3 <= store.index["heldout"]["documents"] <= 7
    everything = data_config(write_source(tmp_path / "c.jsonl", books), heldout_sequences=rows)
    store = prepare(everything, tokenizer_folder, tmp_path / "everything")
    held = sum(len(book.encode()) + 1 for book in books) - store.num_rows * 32
    assert held <= 0.11 * sum(len(book.encode()) + 1 for book in books)


def test_every_format_gives_the_same_store(tmp_path: Path, tokenizer_folder: Path) -> None:
    texts = documents(50)
    made = {}
    for name in FORMATS:
        source = write_source(tmp_path / name / f"a.{name}", texts)
        made[name] = prepare(data_config(source), tokenizer_folder, tmp_path / f"store-{name}").fingerprint
    for i, part in enumerate((texts[:20], texts[20:21], texts[21:])):
        write_source(tmp_path / "many" / "deep" / f"{i}.jsonl", part)
    (tmp_path / "many" / "dataset_info.json").write_text("{}")
    (tmp_path / "many" / ".cache").mkdir()
    (tmp_path / "many" / ".cache" / "x.jsonl").write_text('{"text": "hidden"}\n')
    made["folder"] = prepare(data_config(tmp_path / "many"), tokenizer_folder, tmp_path / "store-folder").fingerprint
    pattern = f"{tmp_path}/many/**/*.jsonl"
    made["glob"] = prepare(data_config(pattern), tokenizer_folder, tmp_path / "store-glob").fingerprint
    assert len(set(made.values())) == 1, made


def test_batches_shards_and_threads_do_not_show(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = documents(120)
    source = write_source(tmp_path / "a.jsonl", texts)
    plain = prepare(data_config(source), tokenizer_folder, tmp_path / "plain")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    alone = prepare(data_config(source, num_proc=2), tokenizer_folder, tmp_path / "alone")
    assert alone.fingerprint == plain.fingerprint
    monkeypatch.setattr("compress.data.sources.stream.BATCH_CHARS", 50)
    monkeypatch.setattr(shards, "SHARD_TOKENS", 100)
    small = prepare(data_config(source), tokenizer_folder, tmp_path / "small")
    assert len(small.index["train"]["shards"]) > 10
    assert all_rows(small) == all_rows(plain)
    assert np.array_equal(small.heldout(), plain.heldout())


def test_a_token_budget_is_met_exactly_and_reads_no_further(tmp_path: Path, tokenizer_folder: Path) -> None:
    for i in range(4):
        write_source(tmp_path / "data" / f"{i}.jsonl", documents(40, i))
    everything = prepare(data_config(tmp_path / "data"), tokenizer_folder, tmp_path / "all")
    store = prepare(data_config(tmp_path / "data", tokens=1000), tokenizer_folder, tmp_path / "store")
    assert store.num_rows == 32  # 1000 tokens in rows of 32, rounded up
    assert all_rows(store) == all_rows(everything)[: 32 * 32] or store.index["documents"] < 160
    read = ["sha256" in entry for entry in store.index["source"]["files"]]
    assert read[0]
    assert not read[-1]


def test_heldout_bytes_are_those_of_the_scored_tokens(tmp_path: Path, tokenizer_folder: Path) -> None:
    texts = [f"plain ascii document number {i}" for i in range(40)]
    store = prepare(data_config(write_source(tmp_path / "a.txt", texts)), tokenizer_folder, tmp_path / "store")
    scored = store.heldout()[:, 1:]  # one byte a token, none for EOS
    assert store.heldout_bytes() == (scored != EOS).sum()
    assert store.heldout_bytes(2) == (scored[:2] != EOS).sum()


@given(st.text(min_size=1, max_size=200).filter(lambda text: text.encode("utf-8", "ignore").decode() == text))
def test_token_bytes_sum_to_the_text(text: str) -> None:
    encoder = Encoder(tokenizer_spec(byte_tokenizer()))
    ids, sizes = encoder.with_bytes(text)
    assert sizes.sum() == len(text.encode())
    assert sizes.min() >= 0
    assert ids.tolist() == encoder([text])[0].tolist()


def test_text_that_spells_a_special_token_stays_text(tmp_path: Path, tokenizer_folder: Path) -> None:
    texts = ["before <eos> after", "two"] * 10
    source = write_source(tmp_path / "a.txt", texts)
    store = prepare(data_config(source, heldout_sequences=0, seq_len=2), tokenizer_folder, tmp_path / "store")
    assert all_rows(store).count(EOS) == 20


def test_cutting_a_long_document_does_not_change_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [word[:20] for word in " ".join(documents(300)).split()]
    text = " ".join(words) + "\n\n  indented    text and more\n" * 20 + "\t1 2  3 (a) 'tis"
    encoder = Encoder(tokenizer_spec(trained_tokenizer([text], 400)))
    whole = encoder([text])[0]
    monkeypatch.setattr(encode, "PIECE_CHARS", 64)
    assert len(split_pieces(text)) > 100
    assert "".join(split_pieces(text)) == text
    assert encoder([text])[0].tolist() == whole.tolist()


def test_a_vocabulary_beyond_65536_is_stored_in_32_bits(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(70_000)} | {"<eos>": 70_000}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(tmp_path / "tokenizer")
    source = write_source(tmp_path / "a.txt", [f"w{i} w{i + 1}" for i in range(69_990, 69_999)])
    config = data_config(source, heldout_sequences=0, seq_len=3)
    store = prepare(config, tmp_path / "tokenizer", tmp_path / "store")
    assert store.index["dtype"] == "uint32"
    assert store.vocab_size == 70_001
    assert store.rows([0, 8]).tolist() == [[69_990, 69_991, 70_000], [69_998, 69_999, 70_000]]


def test_a_finished_store_is_opened_and_nothing_done(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path / "data" / "a.jsonl", documents(40))
    made = prepare(data_config(source), tokenizer_folder, tmp_path / "store")
    before = content(tmp_path / "store")
    os.utime(source, (1, 1))  # touched, not changed

    def refuse(*args: object) -> None:
        raise AssertionError("prepared again")

    monkeypatch.setattr(importlib.import_module("compress.data.preparing"), "Maker", refuse)
    again = prepare(data_config(source.parent, num_proc=3), tokenizer_folder, tmp_path / "store")
    assert again.fingerprint == made.fingerprint
    assert content(tmp_path / "store") == before


def test_a_store_made_from_something_else_is_refused_by_name(tmp_path: Path, tokenizer_folder: Path) -> None:
    source = write_source(tmp_path / "a.jsonl", documents(40))
    prepare(data_config(source), tokenizer_folder, tmp_path / "store")
    with pytest.raises(UsageError, match="seq_len was 32 and is 16"):
        prepare(data_config(source, seq_len=16), tokenizer_folder, tmp_path / "store")
    other = byte_tokenizer()
    other.add_tokens(["abc"])
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(UsageError, match="the tokenizer is another"):
        prepare(data_config(source), tmp_path / "other", tmp_path / "store")
    source.write_text(source.read_text().replace("a", "b"))
    with pytest.raises(UsageError, match="the source is another"):
        prepare(data_config(source), tokenizer_folder, tmp_path / "store")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").touch()
    with pytest.raises(UsageError, match="not empty"):
        prepare(data_config(source), tokenizer_folder, tmp_path / "taken")


def test_the_tokenizer_fingerprint_survives_saving_and_sees_a_change(tmp_path: Path) -> None:
    from compress.model.load import load_tokenizer

    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path / "a")
    loaded = load_tokenizer(tmp_path / "a")
    loaded.save_pretrained(tmp_path / "b")
    again = load_tokenizer(tmp_path / "b")
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(loaded) == tokenizer_fingerprint(again)
    again.add_tokens(["xyz"])
    assert tokenizer_fingerprint(again) != tokenizer_fingerprint(loaded)


def test_a_bare_tokenizer_file_is_enough(tmp_path: Path) -> None:
    definition = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "tokenizer.json").write_text(json.dumps(definition))
    source = write_source(tmp_path / "a.txt", documents(40))
    store = prepare(data_config(source), tmp_path / "bare", tmp_path / "store")
    assert store.eos_id == EOS


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("seq_len", 1, "greater than or equal to 2"),
        ("tokens", 0, "greater than or equal to 1"),
        ("num_proc", 0, "greater than or equal to 1"),
        ("heldout_sequences", -1, "greater than or equal to 0"),
        ("on_bad_row", "ignore", "'skip' or 'error'"),
        ("dataset", "", "it is empty"),
    ],
)
def test_options_out_of_range_are_named(option: str, value: object, message: str) -> None:
    with pytest.raises(UsageError, match=f"{option!r}|{option} .*{message}"):
        build_from(DataConfig, {"dataset": "x", option: value})


@pytest.mark.slow
def test_the_shared_corpus(tmp_path: Path) -> None:
    import pyarrow.parquet as pq
    from transformers import PreTrainedTokenizerFast

    if not (SHARED_DATA / "corpus").is_dir():
        pytest.skip("the optional ../shared/data/corpus is not here")
    folder = SHARED_DATA / "tokenizers" / "gpt-neox"
    config = DataConfig(dataset=str(SHARED_DATA / "corpus"), seq_len=1024)
    store = prepare(config, folder, tmp_path / "store")
    store.verify()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    texts = [t for f in sorted((SHARED_DATA / "corpus").iterdir()) for t in pq.read_table(f)["text"].to_pylist()]
    assert store.index["documents"] == len(texts) == 3223
    assert store.index["text_bytes"] == sum(len(text.encode()) for text in texts)
    decoded = "".join(tokenizer.decode(row) for row in store.rows(range(200)))
    found = [part for part in decoded.split("<|endoftext|>")[:-1] if "\ufffd" not in part]
    assert len(found) > 20
    assert set(found) <= set(texts)
    held_out = "".join(tokenizer.decode(row) for row in store.heldout()).split("<|endoftext|>")
    assert not set(held_out) & set(
        "".join(tokenizer.decode(r) for r in store.rows(range(store.num_rows))).split("<|endoftext|>")
    )
    assert TokenStore.open(tmp_path / "store").fingerprint == store.fingerprint
