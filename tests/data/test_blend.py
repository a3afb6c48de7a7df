"""A blend has the rows of its sources' own stores, knows which are whose, and mixes them by the order of a training."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_world import EOS, content, data_config, documents, write_source
from helpers import byte_tokenizer

from compress.base.config import build_from
from compress.base.disk import sha256_tree
from compress.base.errors import Faults, InputError, UsageError
from compress.data import DataConfig, TokenStore, check_data, prepare
from compress.data.preflight import facts_of_plan
from compress.data.sources.hub import HubSource
from compress.data.sources.stream import Unavailable
from compress.data.store.blend import part_folder


def blend(*sources: dict[str, Any], **options: Any) -> DataConfig:
    """A config of a small blend, as a recipe has it."""
    return build_from(DataConfig, {"seq_len": 32, "heldout_sequences": 6, "sources": list(sources), **options})


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Three sources, no text of which is in another."""
    return {
        name: write_source(tmp_path / name / "text.jsonl", [f"{name} {text}" for text in documents(count, seed)])
        for seed, (name, count) in enumerate((("a", 90), ("b", 140), ("c", 60)))
    }


def three(files: dict[str, Path]) -> list[dict[str, Any]]:
    return [{"dataset": str(path), "name": name} for name, path in files.items()]


@pytest.mark.parametrize(
    ("options", "sources", "tokens"),
    [
        ({"tokens": 1000}, [{}, {}], [500, 500]),
        ({"tokens": 1000}, [{"weight": 3}, {}], [750, 250]),
        ({"tokens": 1000}, [{"weight": 0.2}, {"weight": 0.6}, {"tokens": 200}], [200, 600, 200]),
        ({"tokens": 1001}, [{"weight": 1}, {"weight": 2}], [334, 668]),
        ({}, [{"tokens": 64}, {"tokens": 96}], [64, 96]),
        ({}, [{}, {"tokens": 96}], [None, 96]),
        ({"tokens": 6400}, [{"weight": 0.7}, {"weight": 0.2}, {"weight": 0.1}], [4480, 1280, 640]),
        ({"tokens": 6400}, [{"weight": 1e308}, {"weight": 1e308}], [3200, 3200]),
        ({"tokens": 6400}, [{"weight": 1e-300}, {"weight": 1e300}], [1, 6400]),
    ],
)
def test_weights_and_budgets(options: dict[str, Any], sources: list[dict[str, Any]], tokens: list[int | None]) -> None:
    config = blend(*({"dataset": f"{number}.txt", **source} for number, source in enumerate(sources)), **options)
    assert [part.tokens for part in config.parts()] == tokens


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": [{"dataset": "a"}]}, "two `sources` or more"),
        ({"dataset": "a", "sources": [{"dataset": "a"}, {"dataset": "b"}]}, "exactly one of `dataset`"),
        ({}, "exactly one of `dataset`"),
        ({"sources": [{"dataset": "x/a.txt"}, {"dataset": "y/a.jsonl"}]}, r"one name \(a, a\)"),
        ({"sources": [{"dataset": "a", "weight": 2}, {"dataset": "b"}]}, "weights are parts of `data.tokens`"),
        ({"sources": [{"dataset": "a", "weight": 2, "tokens": 9}, {"dataset": "b"}]}, "`weight` or `tokens`"),
        ({"tokens": 90, "sources": [{"dataset": "a", "tokens": 90}, {"dataset": "b"}]}, "leave nothing of 90"),
        ({"sources": [{"dataset": "a"}, {"dataset": "a", "name": "b"}]}, "two sources are the same text"),
        ({"tokens": 90, "sources": [{"dataset": "a", "tokens": 80}, {"dataset": "b", "tokens": 80}]}, "leave that out"),
        ({"text_column": "x", "sources": [{"dataset": "a"}, {"dataset": "b"}]}, "`text_column` is written in each"),
        ({"sources": [{"dataset": "a", "wieght": 2}, {"dataset": "b"}]}, "did you mean 'sources.0.weight'"),
    ],
)
def test_what_makes_no_blend_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_from(DataConfig, {"seq_len": 32, **changes})


def test_rows_are_those_of_the_sources_own_stores(
    files: dict[str, Path], tokenizer_folder: Path, tmp_path: Path
) -> None:
    made = prepare(blend(*three(files)), tokenizer_folder, tmp_path / "blend")
    alone = [
        prepare(data_config(path, heldout_sequences=2), tokenizer_folder, tmp_path / f"alone-{name}")
        for name, path in files.items()
    ]
    assert made.sources == ("a", "b", "c")
    assert made.num_rows == sum(store.num_rows for store in alone)
    everything = np.arange(made.num_rows)
    assert np.array_equal(made.rows(everything), np.concatenate([s.rows(np.arange(s.num_rows)) for s in alone]))
    assert made.sources_of(everything).tolist() == [k for k, store in enumerate(alone) for _ in range(store.num_rows)]
    tokenizer = byte_tokenizer()
    for numbers in range(0, made.num_rows, 7):
        row, source = made.rows([numbers])[0], made.sources[made.sources_of([numbers])[0]]
        begun = [document for document in tokenizer.decode(row).split("<|endoftext|>")[1:-1] if document]
        assert all(document.startswith(f"{source} ") for document in begun)
    assert made.heldout_sources().tolist() == [0, 1, 2, 0, 1, 2]
    assert np.array_equal(made.heldout(), np.stack([alone[k].heldout()[i] for i in range(2) for k in range(3)]))
    assert made.heldout_bytes() == sum(store.heldout_bytes() for store in alone)
    for store, number in zip(alone, range(3), strict=True):
        mine = made.heldout_sources() == number
        _, found = np.unique(made.heldout_documents()[mine], return_inverse=True)
        _, expected = np.unique(store.heldout_documents(), return_inverse=True)
        assert np.array_equal(found, expected)
        others = made.heldout_documents()[~mine]
        assert not np.isin(made.heldout_documents()[mine], others).any()
        assert TokenStore.open(part_folder(made.path, number)).fingerprint == store.fingerprint
    made.verify()
    again = prepare(blend(*three(files)), tokenizer_folder, tmp_path / "again")
    assert content(again.path) == content(made.path)


def test_a_training_reads_the_shares_that_were_asked_for(
    files: dict[str, Path], tokenizer_folder: Path, tmp_path: Path
) -> None:
    a, b, c = three(files)
    config = blend({**a, "weight": 2}, {**b, "weight": 1}, {**c, "tokens": 320}, tokens=1760)
    store = prepare(config, tokenizer_folder, tmp_path / "blend")
    read = store.sources_of(store.row_ids(0, store.num_rows, seed=5))
    assert Counter(read.tolist()) == {0: 30, 1: 15, 2: 10}
    assert facts_of_plan(config)[:4] == (32, 55, 6, config.names)
    assert len(set(read[:20].tolist())) == 3  # mixed, and not one source after the other
    one_by_one = np.concatenate([store.row_ids(position, 1, seed=5) for position in range(store.num_rows)])
    assert np.array_equal(store.sources_of(one_by_one), read)


def test_texts_beside_conversations_are_learned_whole(tmp_path: Path, tokenizer_folder: Path) -> None:
    chats = tmp_path / "chats.jsonl"
    rows = [{"prompt": f"say {n}", "completion": "word " * (n % 3 + 1)} for n in range(60)]
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = write_source(tmp_path / "text.jsonl", documents(200, 3))
    config = blend({"dataset": str(texts)}, {"dataset": str(chats)}, seq_len=256)
    store = prepare(config, tokenizer_folder, tmp_path / "blend")
    store.verify()
    of_text = np.flatnonzero(store.sources_of(np.arange(store.num_rows)) == 0)
    ids, marks = store.rows(of_text), store.marks(of_text)
    assert marks is not None
    assert marks.answers.all()
    after_eos = np.zeros_like(marks.starts)
    after_eos[:, 1:] = ids[:, :-1] == EOS
    assert np.array_equal(marks.starts, after_eos)
    alone = prepare(data_config(chats, seq_len=256, heldout_sequences=3), tokenizer_folder, tmp_path / "chats")
    of_chats = np.arange(store.num_rows)[len(of_text) :]
    found, expected = store.marks(of_chats), alone.marks(np.arange(alone.num_rows))
    assert found is not None
    assert expected is not None
    assert np.array_equal(found.answers, expected.answers)
    assert np.array_equal(found.starts, expected.starts)
    held = store.heldout_marks()
    assert held is not None
    assert held.answers[store.heldout_sources() == 0].all()
    assert not held.answers[store.heldout_sources() == 1].all()


def test_a_source_that_is_too_small_is_named_and_the_others_are_kept(
    files: dict[str, Path], tokenizer_folder: Path, tmp_path: Path
) -> None:
    config = blend(*three(files)[:2], {**three(files)[2], "tokens": 1_000_000})
    with pytest.raises(InputError, match=r"Source c of the blend: .*has only \d+ training tokens of the 1000000"):
        prepare(config, tokenizer_folder, tmp_path / "blend")
    kept = {path.name for path in (tmp_path / "blend.partial").iterdir()}
    assert kept == {"source-0", "source-1", "state.json"}
    finished = [(tmp_path / "blend.partial" / f"source-{number}").stat() for number in (0, 1)]
    made = prepare(blend(*three(files)), tokenizer_folder, tmp_path / "blend")
    assert [part_folder(made.path, number).stat().st_ino for number in (0, 1)] == [each.st_ino for each in finished]
    assert content(made.path) == content(prepare(blend(*three(files)), tokenizer_folder, tmp_path / "at-once").path)


def test_a_store_that_was_begun_is_gone_on_with_from_the_same_sources_alone(
    files: dict[str, Path], tokenizer_folder: Path, tmp_path: Path
) -> None:
    failing = blend(*three(files)[:2], {**three(files)[2], "tokens": 1_000_000})
    with pytest.raises(InputError, match="Source c"):
        prepare(failing, tokenizer_folder, tmp_path / "blend")
    kept = sha256_tree(tmp_path / "blend.partial")
    for config, differing in (
        (blend(*three(files), seed=1), "source a: seed was 0 and is 1; source b: seed was 0 and is 1"),
        (blend(*three(files)[1:], heldout_sequences=4), "the source b is another; the source c is another"),
        (data_config(files["a"]), "sources was "),
    ):
        with pytest.raises(UsageError, match=f"beginning of another store: .*{differing}"):
            prepare(config, tokenizer_folder, tmp_path / "blend")
    assert sha256_tree(tmp_path / "blend.partial").items() >= kept.items()
    part_folder(tmp_path / "blend.partial", 1).rename(tmp_path / "blend.partial" / "source-2")
    with pytest.raises(UsageError, match="there were more than 2 sources"):
        prepare(blend(*three(files)[:2]), tokenizer_folder, tmp_path / "blend")


def test_a_hub_that_is_away_leaves_nothing_that_refuses_another_source(
    files: dict[str, Path], tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: HubSource) -> None:
        raise Unavailable("The hub is away")

    monkeypatch.setattr(HubSource, "connect", away)
    hub = {"dataset": "hub:org/name", "tokens": 320}
    with pytest.raises(Unavailable):
        prepare(blend(hub, three(files)[0]), tokenizer_folder, tmp_path / "blend")
    assert prepare(data_config(files["a"]), tokenizer_folder, tmp_path / "blend").num_rows


@pytest.mark.parametrize("options", [{"train_on_prompt": True}, {"too_long": "leave_out"}, {"apart": False}])
def test_options_of_instructions_go_with_a_blend_that_has_some(
    options: dict[str, Any], files: dict[str, Path], tokenizer_folder: Path, tmp_path: Path
) -> None:
    chats = tmp_path / "chats.jsonl"
    chats.write_text("".join(json.dumps({"prompt": f"say {n}", "completion": f"word {n}"}) + "\n" for n in range(60)))
    text, chat = three(files)[0], {"dataset": str(chats)}
    for config in (blend(text, three(files)[1], **options), data_config(files["a"], **options)):
        found = Faults()
        check_data(config, None, tmp_path / "x", found)
        with pytest.raises(UsageError, match=f"data.{next(iter(options))} is of instructions"):
            found.refuse()
    check_data(blend(text, chat, **options), None, tmp_path / "x", faults := Faults())
    faults.refuse()
    made = prepare(blend(text, chat, **options, seq_len=256), tokenizer_folder, tmp_path / "mixed")
    assert made.apart == options.get("apart", True)
    alone = prepare(data_config(chats, **options, seq_len=256, heldout_sequences=3), tokenizer_folder, tmp_path / "one")
    marks, expected = (store.marks(np.arange(store.num_rows)[-alone.num_rows :]) for store in (made, alone))
    assert marks is not None
    assert expected is not None
    assert np.array_equal(marks.answers, expected.answers)


def test_a_first_source_that_fails_leaves_nothing(
    files: dict[str, Path], tokenizer_folder: Path, tmp_path: Path
) -> None:
    config = blend({**three(files)[0], "tokens": 1_000_000}, three(files)[1])
    with pytest.raises(InputError, match="Source a of the blend"):
        prepare(config, tokenizer_folder, tmp_path / "blend")
    assert not (tmp_path / "blend.partial").exists()


def test_a_finished_blend_knows_what_it_was_made_from(
    files: dict[str, Path], tokenizer_folder: Path, tmp_path: Path
) -> None:
    config = blend(*three(files))
    prepare(config, tokenizer_folder, tmp_path / "blend")
    (tmp_path / "elsewhere").mkdir()
    for name, path in files.items():
        path.parent.rename(tmp_path / "elsewhere" / name)
    moved = {name: tmp_path / "elsewhere" / name / path.name for name, path in files.items()}
    assert prepare(blend(*three(moved)), tokenizer_folder, tmp_path / "blend").num_rows  # the same files elsewhere
    renamed = blend(*({**source, "name": name} for source, name in zip(three(moved), "axc", strict=True)))
    with pytest.raises(UsageError, match=r'made from something else: sources\.1\.name was "b" and is "x"'):
        prepare(renamed, tokenizer_folder, tmp_path / "blend")
    write_source(moved["b"], documents(50, 9))
    with pytest.raises(UsageError, match="made from something else: the source is another"):
        prepare(blend(*three(moved)), tokenizer_folder, tmp_path / "blend")


@pytest.mark.parametrize(
    "damage",
    [
        lambda index: index["sources"][0].update(rows=index["sources"][0]["rows"] - 1),
        lambda index: index["heldout"]["sources"].__setitem__(0, 7),
        lambda index: index["sources"].pop(),
        lambda index: index["sources"].reverse(),
        lambda index: index["train"]["shards"][0].update(file="../a/train-00000.bin"),
        lambda index: index["train"]["shards"][0].update(file="/tmp/train-00000.bin"),
    ],
)
def test_an_index_that_does_not_fit_its_sources_is_refused(
    files: dict[str, Path], tokenizer_folder: Path, tmp_path: Path, damage: Any
) -> None:
    from compress.data.store.index import fingerprint_of

    made = prepare(blend(*three(files)), tokenizer_folder, tmp_path / "blend")
    index = json.loads((made.path / "index.json").read_text())
    damage(index)
    index["fingerprint"] = fingerprint_of(index)
    (made.path / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="Prepare the data again"):
        TokenStore.open(made.path)


def test_parts_of_one_source_are_the_config_itself(files: dict[str, Path]) -> None:
    config = data_config(files["a"])
    assert config.parts() == (config,)
    assert config.names == ()
    assert all(part.sources is None for part in blend(*three(files)).parts())
    assert dataclasses.replace(config, tokens=99).datasets == (str(files["a"]),)


def test_a_folder_that_is_only_named_like_a_source_is_the_users(
    files: dict[str, Path], tokenizer_folder: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "blend.partial" / "source-0" / "diary.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(UsageError, match="nothing is written over it"):
        prepare(blend(*three(files)), tokenizer_folder, tmp_path / "blend")
    assert mine.read_text() == "mine"
