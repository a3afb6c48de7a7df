"""A store checks itself, and one integer is the whole state of the data."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_world import data_config, documents, write_source

from compress.base.errors import InputError, UsageError
from compress.data import TokenStore, prepare
from compress.data.store import shards
from compress.data.store.index import fingerprint_of


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    source = write_source(folder / "a.jsonl", documents(150))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_TOKENS", 320)
        prepare(data_config(source), tokenizer_folder, folder / "store")
    return folder / "store"


def test_a_run_sees_every_row_once_an_epoch_in_a_new_order(finished: Path) -> None:
    store = TokenStore.open(finished)
    n = store.num_rows
    run = store.row_ids(0, 3 * n, seed=7, epochs=3).reshape(3, n)
    for epoch in range(3):
        assert sorted(run[epoch]) == list(range(n))
        assert np.array_equal(run[epoch], store.order(7, epoch))
    assert not np.array_equal(run[0], run[1])
    assert not np.array_equal(run[0], store.order(8, 0))


@pytest.mark.faults(2)
def test_the_position_alone_resumes_exactly_across_epochs(finished: Path) -> None:
    store = TokenStore.open(finished)
    n = store.num_rows
    whole = store.batch(0, 2 * n, seed=3, epochs=2)
    for position in range(2 * n + 1):
        size = (position * 7) % 11
        count = min(size, 2 * n - position)
        found = TokenStore.open(finished).batch(position, count, 3, 2)
        assert found.dtype == np.int64
        assert found.shape == (count, store.seq_len)
        assert np.array_equal(found, whole[position : position + count])


def test_running_past_the_epochs_is_refused(finished: Path) -> None:
    store = TokenStore.open(finished)
    store.batch(store.num_rows - 1, 1, seed=0)
    with pytest.raises(UsageError, match="epochs = 1"):
        store.batch(store.num_rows - 1, 2, seed=0)
    with pytest.raises(UsageError, match="epochs = 2"):
        store.batch(2 * store.num_rows, 1, seed=0, epochs=2)


def test_rows_by_index_come_from_the_right_shard(finished: Path) -> None:
    store = TokenStore.open(finished)
    assert len(store.index["train"]["shards"]) > 5
    raw = np.concatenate([np.fromfile(p, "<u2") for p in sorted(finished.glob("train-*.bin"))])
    table = raw.reshape(-1, store.seq_len)
    picked = np.random.default_rng(0).integers(0, store.num_rows, 200)
    assert np.array_equal(store.rows(picked), table[picked])
    for wrong in (-1, store.num_rows):
        with pytest.raises(IndexError):
            store.rows([wrong])


def test_heldout_rows(finished: Path) -> None:
    store = TokenStore.open(finished)
    assert store.heldout().shape == (4, 32)
    assert np.array_equal(store.heldout(2), store.heldout()[:2])
    assert store.heldout(0).shape == (0, 32)
    with pytest.raises(UsageError, match="5 held-out sequences"):
        store.heldout(5)


def truncate(store: Path) -> None:
    path = store / "train-00001.bin"
    path.write_bytes(path.read_bytes()[:-2])


def edit_index(store: Path) -> None:
    index = json.loads((store / "index.json").read_text())
    index["eos_id"] = 3
    (store / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "train-00001.bin has 638 bytes, not 640"),
        (lambda store: (store / "heldout.bin").unlink(), "heldout.bin is missing"),
        (lambda store: (store / "index.json").unlink(), "has no index.json"),
        (lambda store: (store / "index.json").write_text('{"forma'), "cannot be read as JSON"),
        (lambda store: (store / "index.json").write_text("{}"), "not the index of a token store"),
        (edit_index, "was changed after it was written"),
    ],
)
def test_a_damaged_store_is_refused(
    tmp_path: Path, finished: Path, damage: Callable[[Path], object], message: str
) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    damage(copy)
    with pytest.raises(InputError, match=message):
        TokenStore.open(copy)


@pytest.mark.parametrize(
    ("part", "value", "field"),
    [
        ("train", {"rows": 1, "shards": [{"rows": 1, "sha256": ""}]}, r"train\.shards\.0\.file"),
        ("train", {"rows": 1, "shards": [{"file": "train-00000.bin", "rows": 1}]}, r"train\.shards\.0\.sha256"),
        ("train", {"rows": -1, "shards": []}, r"train\.rows"),
        ("heldout", {"rows": None}, r"heldout"),
        ("heldout", {"rows": 1, "file": "heldout.bin", "sha256": "", "bytes": [None]}, r"heldout\..*bytes\.0"),
        ("seq_len", True, "seq_len"),
    ],
)
def test_an_index_of_another_shape_is_refused(
    tmp_path: Path, finished: Path, part: str, value: Any, field: str
) -> None:
    """Even one whose fingerprint is right."""
    copy = shutil.copytree(finished, tmp_path / "copy")
    index = json.loads((copy / "index.json").read_text())
    index[part] = value
    index["fingerprint"] = fingerprint_of(index)
    (copy / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=rf"index\.json is damaged \({field}"):
        TokenStore.open(copy)


def test_verify_finds_a_flipped_bit(tmp_path: Path, finished: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    TokenStore.open(copy).verify()
    path = copy / "train-00002.bin"
    raw = bytearray(path.read_bytes())
    raw[5] ^= 1
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"train-00002\.bin is not as it was written"):
        TokenStore.open(copy).verify()
