"""Rows with images in a token store: written under kills, read back, and handed to processes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_world import content
from vision_world import save_vlm, write_rows

from compress.base.errors import InputError
from compress.data import DataConfig, TokenStore, prepare
from compress.data.store import preparation
from compress.data.store.pictures import Picture
from compress.data.store.shards import ShardWriter
from compress.distill.rows.batch import Batch, share
from compress.model.vision import collated

SEQ_LEN = 192


def config(source: Path, **options: Any) -> DataConfig:
    return DataConfig(dataset=str(source), form="images", **{"seq_len": SEQ_LEN, "heldout_sequences": 3, **options})


def test_a_preparation_that_was_stopped_anywhere_ends_with_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, source = str(save_vlm(tmp_path / "teacher", "llava")), write_rows(tmp_path / "rows")
    monkeypatch.setattr(preparation, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr("compress.data.store.shards.SHARD_TOKENS", 7 * SEQ_LEN)
    monkeypatch.setattr("compress.data.sources.stream._BATCH_ROWS", 4)
    prepare(config(source), teacher, tmp_path / "whole", visible=False)
    append, calls = ShardWriter.append, 0

    def failing(self: ShardWriter, *args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 9 == 0:
            append(self, *args)
            raise KeyboardInterrupt
        append(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(ShardWriter, "append", failing)
        for _ in range(20):
            try:
                prepare(config(source), teacher, tmp_path / "cut", visible=False)
                break
            except KeyboardInterrupt:
                pass
    assert calls > 40
    whole, cut = TokenStore.open(tmp_path / "whole"), TokenStore.open(tmp_path / "cut")
    assert len(whole.index["train"]["shards"]) > 3
    cut.verify()
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    numbers = range(whole.num_rows)
    assert whole.records(numbers) == cut.records(numbers)
    texts = {Picture.read(record).text for record in (*whole.records(numbers), *whole.heldout_records())}
    assert len(texts) == whole.num_rows + whole.num_heldout == 40


def test_a_damaged_file_of_images_is_found(tmp_path: Path) -> None:
    teacher, source = str(save_vlm(tmp_path / "teacher", "llava")), write_rows(tmp_path / "rows", 12)
    store = prepare(config(source), teacher, tmp_path / "data", visible=False)
    path = tmp_path / "data" / "train-00000.images"
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(InputError, match=r"train-00000.images is not as it was written"):
        store.verify()
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"train-00000.images has \d+ bytes, not"):
        TokenStore.open(tmp_path / "data")


def test_processes_share_rows_with_what_belongs_to_each() -> None:
    ids = np.arange(5 * 4).reshape(5, 4)
    inputs = tuple({"pixels": torch.full((1 + row % 2, 2 + row), float(row))} for row in range(5))
    batch = Batch(ids=ids, labels=ids[:, 1:], row_ids=np.arange(5), inputs=inputs)
    for rank in range(2):
        for piece in share(batch, size=2, processes=2, rank=rank).pieces:
            expected = torch.cat([torch.full((1 + row % 2,), float(row)) for row in piece.row_ids])
            assert torch.equal(piece.inputs["pixels"][:, 0], expected)
            assert torch.equal(piece.ids[:, 0], torch.from_numpy(4 * piece.row_ids))


def test_inputs_of_several_rows_are_padded_at_the_end_of_each_dimension_but_the_first() -> None:
    found = collated([{"a": torch.ones(1, 2, 3)}, {"a": 2 * torch.ones(2, 1, 4)}])["a"]
    assert found.shape == (3, 2, 4)
    assert found[0].tolist() == [[1, 1, 1, 0], [1, 1, 1, 0]]
    assert found[1:].tolist() == [[[2, 2, 2, 2], [0, 0, 0, 0]]] * 2
