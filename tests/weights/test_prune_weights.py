"""Weights are copied byte for byte, in bounded memory, and damaged files are named."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import save_tiny_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from compress.base.disk import sha256_file
from compress.base.errors import InputError
from compress.model.load import load_model
from compress.prune import StorageConfig, prune
from compress.weights import copying
from compress.weights import headers as weights
from compress.weights.casting import student_tensors
from compress.weights.copying import Copying


def save_sharded(folder: Path, model_type: str = "llama") -> Path:
    """A tiny teacher in several shards with an index."""
    save_tiny_model(folder, model_type)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    shards = {f"model-{i + 1:05d}-of-00003.safetensors": names[i::3] for i in range(3)}
    for file, keys in shards.items():
        save_file({key: state[key] for key in keys}, folder / file, metadata={"format": "pt"})
    weight_map = {key: file for file, keys in shards.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def renumbered(state: dict[str, torch.Tensor], kept: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """The expected student, by plain string work on the teacher's keys."""
    result = {name: tensor for name, tensor in state.items() if ".layers." not in name}
    for new, old in enumerate(kept):
        mark = f".layers.{old}."
        result |= {name.replace(mark, f".layers.{new}."): t for name, t in state.items() if mark in name}
    return result


def copy_into(folder: Path, named: list[tuple[str, weights.StoredTensor]]) -> None:
    with Copying([(folder, student_tensors(named, None, (), 0))]) as copy:
        copy.finish()


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_pruning_nothing_changes_no_weight(tmp_path: Path) -> None:
    teacher = save_tiny_model(tmp_path / "teacher")
    prune(teacher, tmp_path / "student", "::")
    assert_same(all_tensors(tmp_path / "student"), all_tensors(teacher))


@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000, 1])
def test_shards_in_shards_out(tmp_path: Path, max_shard_bytes: int) -> None:
    teacher = save_sharded(tmp_path / "teacher")
    student = tmp_path / "student"
    result = prune(teacher, student, "1,3", storage=StorageConfig(max_shard_size=max_shard_bytes))
    assert_same(all_tensors(student), renumbered(all_tensors(teacher), (1, 3)))
    files = sorted(student.glob("*.safetensors"))
    if max_shard_bytes == 10**9:
        assert [file.name for file in files] == ["model.safetensors"]
    else:
        index = json.loads((student / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"].values()) == {file.name for file in files}
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in all_tensors(student).values())
        assert all(file.stat().st_size < max(max_shard_bytes, 40_000) + 2_000 for file in files)
    for file in files:
        assert result.record["sha256"][file.name] == sha256_file(file)
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}


def test_mixed_dtypes_and_odd_sizes_keep_their_bytes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Any] = {
        "model.layers.0.a": torch.randn(3, 5, generator=generator, dtype=torch.bfloat16),
        "model.layers.0.flags": torch.tensor([True, False, True]),
        "model.layers.1.a": torch.randn(7, generator=generator, dtype=torch.float64),
        "model.layers.1.scalar": torch.tensor(3.5),
        "head": torch.randn(9, generator=generator).to(torch.float8_e4m3fn),
        "empty": torch.empty(0, 4),
    }
    save_file(state, tmp_path / "model.safetensors")
    tensors = weights.select_tensors([tmp_path / "model.safetensors"], ["model.layers"], [1], 2)
    (tmp_path / "out").mkdir()
    copy_into(tmp_path / "out", tensors)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == {"model.layers.0.a", "model.layers.0.scalar", "head", "empty"}
    assert torch.equal(found["model.layers.0.a"], state["model.layers.1.a"])
    assert torch.equal(found["head"].view(torch.uint8), state["head"].view(torch.uint8))


def test_a_checkpoint_saved_without_its_head_module_and_one_with_extra_layers(tmp_path: Path) -> None:
    teacher = save_tiny_model(tmp_path / "teacher", "gpt2")
    file = teacher / "model.safetensors"
    bare = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    save_file(bare, file, metadata={"format": "pt"})
    assert prune(teacher, tmp_path / "student", "0,3").check.passed
    assert {name.split(".")[1] for name in all_tensors(tmp_path / "student") if name.startswith("h.")} == {"0", "1"}

    extra = {"model.layers.0.w": torch.ones(2), "model.layers.1.w": torch.ones(2)}
    save_file(extra, tmp_path / "extra.safetensors")
    chosen = weights.select_tensors([tmp_path / "extra.safetensors"], ["model.layers"], [0], 1)
    assert [name for name, _ in chosen] == ["model.layers.0.w"]


@pytest.mark.faults(22)
@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_heads_round_trip(tmp_path: Path, tied: bool) -> None:
    teacher = save_tiny_model(tmp_path / "teacher", tie_word_embeddings=tied)
    result = prune(teacher, tmp_path / "student", "0,3")
    student = load_model(tmp_path / "student", dtype=torch.float32)
    assert (student.lm_head.weight is student.model.embed_tokens.weight) == tied
    assert ("lm_head.weight" in all_tensors(tmp_path / "student")) != tied
    assert result.plan.params_after == sum(p.numel() for p in student.parameters())


@pytest.mark.faults(7, 22)
def test_a_contradicting_tie_flag_is_refused(tmp_path: Path) -> None:
    teacher = save_tiny_model(tmp_path / "teacher", tie_word_embeddings=True)
    set_config(teacher, tie_word_embeddings=False)
    with pytest.raises(InputError, match=r"teacher.*lm_head\.weight"):
        prune(teacher, tmp_path / "student")
    assert not (tmp_path / "student").exists()


@pytest.mark.faults(22)
def test_a_head_beside_a_tie_flag_survives(tmp_path: Path) -> None:
    teacher = save_tiny_model(tmp_path / "teacher", tie_word_embeddings=False)
    set_config(teacher, tie_word_embeddings=True)
    assert prune(teacher, tmp_path / "student").check.passed
    assert "lm_head.weight" in all_tensors(tmp_path / "student")


def set_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.faults(14)
@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "missing"])
def test_a_damaged_shard_is_named(tmp_path: Path, damage: str) -> None:
    teacher = save_sharded(tmp_path / "teacher")
    shard = teacher / "model-00002-of-00003.safetensors"
    data = shard.read_bytes()
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes({"truncated": data[:-100], "empty": b"", "garbage": b"\xff" * 64}[damage])
    with pytest.raises(InputError, match=r"model-00002-of-00003\.safetensors"):
        prune(teacher, tmp_path / "student")
    assert list(tmp_path.iterdir()) == [teacher]


@pytest.mark.faults(15)
@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/passwd", "C:\\evil.safetensors"])
def test_an_index_that_points_outside_is_refused(tmp_path: Path, name: str) -> None:
    teacher = save_sharded(tmp_path / "teacher")
    index = teacher / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {**weight_map, "model.norm.weight": name}}))
    with pytest.raises(InputError, match="plain file name"):
        prune(teacher, tmp_path / "student")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_number_that_is_none_is_found_wherever_it_is(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    for position in (0, 1, 517, 1022):
        state = {"w": torch.randn(1023).to(dtype)}
        state["w"][position] = value
        save_file(state, tmp_path / "x.safetensors")
        with pytest.raises(InputError, match="tensor w holds NaN or infinity"):
            copy_into(tmp_path, [("w", weights.read_header(tmp_path / "x.safetensors")[0])])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_in_a_kept_layer_is_named_and_in_a_dropped_one_is_gone(tmp_path: Path, dtype: torch.dtype) -> None:
    teacher = save_tiny_model(tmp_path / "teacher")
    file, key = teacher / "model.safetensors", "model.layers.2.mlp.up_proj.weight"
    state = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    state[key][3, 3] = float("nan")
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"model\.safetensors.*model\.layers\.2\.mlp\.up_proj\.weight"):
        prune(teacher, tmp_path / "student", "0,2")
    assert not (tmp_path / "student").exists()
    prune(teacher, tmp_path / "student", "0,3", check=False)


def test_a_layer_without_weights_and_a_tensor_in_two_files_are_named(tmp_path: Path) -> None:
    save_file({"model.layers.0.w": torch.ones(2)}, tmp_path / "a.safetensors")
    save_file({"model.layers.0.w": torch.ones(2)}, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match=r"no weights for layer 1 of 2.*model\.layers\.1\."):
        weights.select_tensors([tmp_path / "a.safetensors"], ["model.layers"], [0], 2)
    with pytest.raises(InputError, match=r"model\.layers\.0\.w is in several files \(a.*b"):
        weights.select_tensors([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], ["model.layers"], [0], 1)


def test_memory_stays_at_a_few_buffers(tmp_path: Path) -> None:
    for i in range(2):
        save_file({f"model.layers.{i}.w": torch.zeros(24 << 20)}, tmp_path / f"{i}.safetensors")
    script = """
import resource, sys
from pathlib import Path
from compress.weights.casting import student_tensors
from compress.weights.copying import Copying
from compress.weights.headers import select_tensors
folder = Path(sys.argv[1])
tensors = select_tensors([folder / "0.safetensors", folder / "1.safetensors"], ["model.layers"], [0, 1], 2)
(folder / "out").mkdir()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with Copying([(folder / "out", student_tensors(tensors, None, [0, 1], 2))]) as copying:
    copying.finish()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")) > 192 << 20
    assert int(done.stdout) < 64 << 10, "more than 64 MiB to copy 192 MiB"


def select_and_copy(
    tmp_path: Path, state: dict[str, torch.Tensor], kept: tuple[int, ...], cast: str | None = None
) -> dict[str, torch.Tensor]:
    save_file(state, tmp_path / "teacher.safetensors")
    layers = {f"model.layers.{i}.w": torch.full((2,), float(i)) for i in range(6)}
    save_file(layers, tmp_path / "layers.safetensors")
    files = [tmp_path / "teacher.safetensors", tmp_path / "layers.safetensors"]
    (tmp_path / "student").mkdir()
    named = weights.select_tensors(files, ["model.layers"], kept, 6)
    with Copying([(tmp_path / "student", student_tensors(named, cast, kept, 6))]) as copy:
        copy.finish()
    return load_file(tmp_path / "student" / "model.safetensors")


@pytest.mark.parametrize("cast", [None, "float16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("buffer_bytes", [1, 100, 1 << 16])
def test_tables_with_a_part_for_each_layer_keep_the_kept_layers_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, buffer_bytes: int, cast: str | None
) -> None:
    table = torch.randn(7, 6 * 4).to(dtype)
    projection = torch.randn(6 * 4, 5).to(dtype)
    state = {
        "model.embed_tokens_per_layer.weight": table,
        "model.language_model.per_layer_model_projection.weight": projection,
    }
    monkeypatch.setattr(copying, "_BUFFER_BYTES", max(buffer_bytes, 6 * 4 * dtype.itemsize))
    found = select_and_copy(tmp_path, state, (1, 2, 5), cast)
    table, projection = (each.to(torch.float16 if cast else dtype) for each in (table, projection))
    columns = torch.cat([torch.arange(4 * layer, 4 * layer + 4) for layer in (1, 2, 5)])
    assert torch.equal(found["model.embed_tokens_per_layer.weight"], table[:, columns])
    assert torch.equal(found["model.language_model.per_layer_model_projection.weight"], projection[columns])


def test_multi_token_prediction_heads_are_left_out(tmp_path: Path) -> None:
    names = ("model.layers.6.eh_proj.w", "mtp.layers.0.w", "model.mtp.fc.w", "model.mtp_layers.0.w", "model.norm.w")
    found = select_and_copy(tmp_path, {name: torch.ones(2) for name in names}, (0, 5))
    assert sorted(found) == ["model.layers.0.w", "model.layers.1.w", "model.norm.w"]
    assert found["model.layers.1.w"].tolist() == [5.0, 5.0]


def test_a_table_that_does_not_divide_by_the_layers_is_refused(tmp_path: Path) -> None:
    state = {"model.embed_tokens_per_layer.weight": torch.ones(3, 25)}
    with pytest.raises(InputError, match=r"embed_tokens_per_layer.* has no part for each of 6 layers"):
        select_and_copy(tmp_path, state, (0, 5))
