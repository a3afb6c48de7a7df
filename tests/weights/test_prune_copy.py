"""The ways weights are stored: families in one pass, casts, shards, shared files; and what starts before the plan."""

import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import run_cli, save_tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compress.base.disk import sha256_file, sha256_tree
from compress.base.errors import CompressError, InputError, UsageError
from compress.model.load import load_model
from compress.prune import RepairConfig, StorageConfig, prune, prune_family, under_way
from compress.weights import copying
from compress.weights.casting import student_tensors
from compress.weights.headers import read_header
from compress.weights.shards import StudentTensor

SPECS = ("alternate", "uniform:3", "1::2", "0,2-3")


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def in_files(folder: Path, *endings: str, **overrides: Any) -> Path:
    """A tiny llama whose tensors with each of `endings` in their names are in files of their own."""
    save_tiny_model(folder, **overrides)
    left = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, ending in enumerate([*endings, ""]):
        name = f"part-{number}.safetensors"
        part = {key: left.pop(key) for key in [key for key in left if ending in key]}
        save_file(part, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return in_files(tmp_path_factory.mktemp("teacher"), ".0.", ".2.", num_hidden_layers=5)


def test_a_family_is_what_single_prunes_make_and_reads_each_byte_once(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[tuple[str, int]] = Counter()

    class Watched(copying.LocalFiles):
        def read(self, path: Path, start: int, into: memoryview) -> int:
            read.update((path.name, byte) for byte in range(start, start + len(into)))
            return super().read(path, start, into)

    monkeypatch.setattr(copying, "LocalFiles", Watched)
    storage = StorageConfig(max_shard_size=40_000)
    family = prune_family(teacher, tmp_path / "family", SPECS, check=False, storage=storage)
    kept = {layer for result in family for layer in result.plan.kept_layers}
    expected = {
        (path.name, byte)
        for path in teacher.glob("*.safetensors")
        for tensor in read_header(path)
        if ".layers." not in tensor.name or int(tensor.name.split(".")[2]) in kept
        for byte in range(tensor.start, tensor.start + tensor.num_bytes)
    }
    assert read == dict.fromkeys(expected, 1)
    names = ["alternate", "uniform_3", "1__2", "0,2-3"]
    assert [result.out for result in family] == [tmp_path / "family" / name for name in names]
    for spec, result in zip(SPECS, family, strict=True):
        single = prune(teacher, tmp_path / "single" / result.out.name, spec, check=False, storage=storage)
        assert len(single.record["sha256"]) > 6
        assert {**sha256_tree(result.out), "prune.json": ""} == {**sha256_tree(single.out), "prune.json": ""}
        for key in single.record.keys() - {"manifest"}:
            assert result.record[key] == single.record[key], key


def test_a_family_is_complete_or_absent(teacher: Path, tmp_path: Path) -> None:
    for specs, said in ((("alternate", "7"), "5 layers, 0 to 4"), (("1::2", "1 :: 2"), "several different ones")):
        with pytest.raises(UsageError, match=said):
            prune_family(teacher, tmp_path / "family", specs, check=False)
    assert not list(tmp_path.glob("family/*"))
    broken = in_files(tmp_path / "broken", ".0.", ".2.", num_hidden_layers=5)
    state = load_file(broken / "part-1.safetensors")
    state["model.layers.2.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(state, broken / "part-1.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"part-1\.safetensors.*model\.layers\.2\.mlp\.up_proj\.weight"):
        prune_family(broken, tmp_path / "family", ["0,1", "0,2", "3"], check=False)
    assert not list((tmp_path / "family").glob("*"))
    assert len(prune_family(broken, tmp_path / "family", ["0,1", "3"], check=False)) == 2


def test_the_command_takes_several_specs_and_prints_a_list(teacher: Path, tmp_path: Path) -> None:
    arguments = ["prune", str(teacher), str(tmp_path / "family"), "--keep", "alternate", "--keep", "uniform:2"]
    planned = run_cli(*arguments, "--dry-run", "--json")
    assert [plan["kept_layers"] for plan in json.loads(planned.stdout)] == [[0, 2, 4], [0, 4]]
    done = run_cli(*arguments, "--json", "--set", "prune.max_shard_size=1MB")
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout)
    assert [record["kept_layers"] for record in records] == [[0, 2, 4], [0, 4]]
    assert all(record["check"]["passed"] for record in records)
    for name in ("alternate", "uniform_2"):
        load_model(tmp_path / "family" / name, dtype=torch.float32)


@pytest.mark.parametrize("cast", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_cast_rounds_as_torch_does_and_leaves_other_dtypes_alone(
    tmp_path: Path, stored: torch.dtype, cast: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    other = torch.float16 if stored == torch.float32 else torch.float32
    state = {
        "model.layers.0.w": torch.randn(70, 1001, generator=generator).to(stored),
        "model.layers.0.router_bias": torch.randn(7, generator=generator).to(other),
        "ids": torch.arange(5),
        "scalar": torch.tensor(2.7).to(stored),
    }
    save_file(state, tmp_path / "x.safetensors")
    named = [(tensor.name, tensor) for tensor in read_header(tmp_path / "x.safetensors")]
    (tmp_path / "out").mkdir()
    with copying.Copying([(tmp_path / "out", student_tensors(named, cast, (), 0))]) as copy:
        (sha256,) = copy.finish()
    found = tensors_of(tmp_path / "out")
    for name, tensor in state.items():
        expected = tensor.to(getattr(torch, cast)) if tensor.dtype == stored else tensor
        assert found[name].dtype == expected.dtype
        assert torch.equal(found[name], expected), name
    assert sha256 == {path.name: sha256_file(path) for path in (tmp_path / "out").iterdir()}


def test_a_cast_student_says_so_and_equals_the_rounded_teacher(teacher: Path, tmp_path: Path) -> None:
    result = prune(teacher, tmp_path / "student", "0,2,4", storage=StorageConfig(cast="bfloat16"))
    assert result.check.passed
    assert result.check.max_abs_difference == 0
    assert json.loads((result.out / "config.json").read_text())["dtype"] == "bfloat16"
    assert (result.plan.dtype, result.plan.bytes_after) == ("bfloat16", 2 * result.plan.params_after)
    assert result.record["manifest"]["config"]["cast"] == "bfloat16"
    model = AutoModelForCausalLM.from_pretrained(result.out)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    whole = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.bfloat16)
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, whole.model.layers[2].mlp.up_proj.weight)


def test_a_number_too_large_for_a_cast_is_named(tmp_path: Path) -> None:
    teacher = save_tiny_model(tmp_path / "teacher")
    state = load_file(teacher / "model.safetensors")
    state["model.layers.3.mlp.down_proj.weight"][5, 5] = -7e4
    save_file(state, teacher / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"model\.layers\.3\.mlp\.down_proj\.weight .*float16 .*7e\+04"):
        prune(teacher, tmp_path / "student", check=False, storage=StorageConfig(cast="float16"))
    assert not (tmp_path / "student").exists()
    prune(teacher, tmp_path / "student", check=False, storage=StorageConfig(cast="bfloat16"))


def test_a_file_that_stays_as_it_is_can_be_linked_and_is_never_written_through(tmp_path: Path) -> None:
    """Layer 0 stays layer 0, so its file is the student's too; the repair then changes that very layer."""
    teacher = in_files(tmp_path / "teacher", ".0.", num_hidden_layers=4)
    (tmp_path / "text.txt").write_text("".join(f"the quick brown fox jumps {i} times\n" for i in range(60)))
    before = sha256_tree(teacher)
    copied = prune(teacher, tmp_path / "copied", "0,2")
    linked = prune(teacher, tmp_path / "linked", "0,2", storage=StorageConfig(link=True))
    (shared,) = [path for path in linked.out.glob("*.safetensors") if path.samefile(teacher / "part-0.safetensors")]
    assert not (copied.out / shared.name).samefile(teacher / "part-0.safetensors")
    assert copied.record["sha256"] == linked.record["sha256"]
    repair = RepairConfig(
        calibration=str(tmp_path / "text.txt"), calibration_tokens=1024, calibration_seq_len=64, device="cpu"
    )
    repaired = prune(teacher, tmp_path / "repaired", "0,2", repair=repair, storage=StorageConfig(link=True))
    assert sha256_tree(teacher) == before
    assert repaired.record["sha256"][shared.name] != linked.record["sha256"][shared.name]
    assert not (repaired.out / shared.name).samefile(teacher / "part-0.safetensors")
    for result in (copied, linked, repaired):
        assert result.record["sha256"] == {
            name: sha for name, sha in sha256_tree(result.out).items() if name != "prune.json"
        }


def test_a_file_is_shared_only_when_it_stays_as_it_is(tmp_path: Path) -> None:
    teacher = in_files(tmp_path / "teacher", ".0.", num_hidden_layers=4)
    for number, (keep, storage) in enumerate(
        [("1,2", StorageConfig(link=True)), ("0,2", StorageConfig(link=True, cast="bfloat16"))]
    ):
        result = prune(teacher, tmp_path / str(number), keep, check=False, storage=storage)
        assert all(path.stat().st_nlink == 1 for path in result.out.iterdir())


def test_a_wrong_guess_is_copied_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers seem to be kept, the plan keeps others: nothing of the guess is left."""
    teacher = in_files(tmp_path / "teacher", ".0.", num_hidden_layers=4)
    honest = under_way.WeightsUnderWay._expected
    monkeypatch.setattr(under_way.WeightsUnderWay, "_expected", lambda self, keeps: honest(self, ["::"]))
    result = prune(teacher, tmp_path / "student", "1,3")
    assert result.check.passed
    monkeypatch.undo()
    assert prune(teacher, tmp_path / "plain", "1,3").record["sha256"] == result.record["sha256"]
    assert {path.name for path in result.out.iterdir()} == {path.name for path in (tmp_path / "plain").iterdir()}


def test_tensors_that_are_sliced_on_the_way(tmp_path: Path) -> None:
    """A change is given whole grains, in order: here rows, of which it keeps some columns."""
    state = {"w": torch.arange(3000 * 1000, dtype=torch.float32).reshape(3000, 1000), "x": torch.ones(3)}
    save_file(state, tmp_path / "x.safetensors")
    stored = {tensor.name: tensor for tensor in read_header(tmp_path / "x.safetensors")}
    kept = torch.tensor([5, 7, 900])

    def columns(data: memoryview) -> memoryview:
        rows = torch.frombuffer(data, dtype=torch.float32).reshape(-1, 1000)
        return memoryview(rows[:, kept].contiguous().numpy()).cast("B")

    sliced = StudentTensor("w", stored["w"], "F32", (3000, 3), columns, grain=4000)
    (tmp_path / "out").mkdir()
    with copying.Copying([(tmp_path / "out", [sliced, StudentTensor.same("y", stored["x"])])]) as copy:
        copy.finish()
    found = tensors_of(tmp_path / "out")
    assert torch.equal(found["w"], state["w"][:, kept])
    assert torch.equal(found["y"], state["x"])


def test_wider_numbers_after_an_odd_count_of_narrow_ones_are_aligned(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3, dtype=torch.uint8)}, tmp_path / "a.safetensors")
    save_file({"b": torch.arange(4.0)}, tmp_path / "b.safetensors")
    named = [(f"new.{name}", read_header(tmp_path / f"{name}.safetensors")[0]) for name in ("a", "b")]
    (tmp_path / "out").mkdir()
    with copying.Copying([(tmp_path / "out", student_tensors(named, None, (), 0))]) as copy:
        copy.finish()
    found = tensors_of(tmp_path / "out")
    assert torch.equal(found["new.b"], torch.arange(4.0))
    assert found["new.a"].tolist() == [1, 1, 1]


def test_no_thread_outlives_a_copy_that_fails_or_is_left(teacher: Path, tmp_path: Path) -> None:
    before = threading.active_count()

    class Cut(copying.LocalFiles):
        def read(self, path: Path, start: int, into: memoryview) -> int:
            return super().read(path, start, into[:-1])

    named = [(tensor.name, tensor) for path in teacher.glob("*.safetensors") for tensor in read_header(path)]
    (tmp_path / "cut").mkdir()
    cut = copying.Copying([(tmp_path / "cut", student_tensors(named, None, (), 0))], Cut())
    with cut, pytest.raises(InputError, match="ends inside the tensor"):
        cut.finish()
    (tmp_path / "left").mkdir()
    with copying.Copying([(tmp_path / "left", student_tensors(named, None, (), 0))]):
        pass
    assert threading.active_count() == before


def test_a_full_disk_during_the_copy_is_told(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("compress.weights.output.os.fsync", full)
    with pytest.raises(CompressError, match="No space left on device"):
        prune(teacher, tmp_path / "student", check=False)
    assert list(tmp_path.iterdir()) == []
