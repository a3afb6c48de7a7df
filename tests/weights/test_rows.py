"""Rows picked while they are copied are torch's own choice of rows, wherever a buffer ends."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.weights import copying
from compress.weights.headers import read_header
from compress.weights.rows import with_rows
from compress.weights.shards import StudentTensor


@pytest.mark.parametrize("buffer_bytes", [8, 24, 1 << 20])
def test_rows_are_picked_across_buffers_and_files(
    buffer_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_BUFFER_BYTES", buffer_bytes)
    tensors = {
        "a": torch.randn(11, 5).bfloat16(),
        "b": torch.randn(11),
        "c": torch.randn(4, 3, 7).double(),
        "d": torch.randn(9, 2),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    kept = {"a": [0, 1, 4, 10], "b": [3], "c": [1, 2, 3]}
    out = tmp_path / "out"
    out.mkdir()
    stored = read_header(tmp_path / "model.safetensors")
    same = [StudentTensor.same("d" if tensor.name == "d" else f"x{tensor.name}", tensor) for tensor in stored]
    students = [tensor if tensor.name == "d" else with_rows(tensor, kept[tensor.source.name]) for tensor in same]
    with copying.Copying([(out, students)], max_shard_bytes=100) as under_way:
        under_way.finish()
    files = list(out.glob("*.safetensors"))
    found = {name: value for path in files for name, value in load_file(path).items()}
    assert len(files) > 1
    assert found.keys() == {"xa", "xb", "xc", "d"}
    assert torch.equal(found["d"], tensors["d"])
    for name, rows in kept.items():
        assert torch.equal(found[f"x{name}"], tensors[name][rows])
