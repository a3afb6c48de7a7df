"""Models that do not fill their config, are damaged, or carry code: refused by every command, by name."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import Commands
from helpers import save_tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compress.base.disk import read_json, write_json
from compress.base.errors import InputError
from compress.distill import DistillConfig, distill
from compress.model.files import check_weight_files
from compress.model.load import load_model
from compress.prune import prune

COMMANDS = {
    "prune": lambda model, world, out: ["prune", str(model), f"{out}/student"],
    "distill": lambda model, world, out: [
        "distill", "--student", str(model), "--alpha", "0", "--data", f"{world}/store", "--out", str(out),
        "--set", "distill.batch_tokens=128",
    ],
    "teach": lambda model, world, out: [
        "distill", "--student", f"{world}/student", "--teacher", str(model), "--data", f"{world}/store",
        "--out", str(out), "--set", "distill.batch_tokens=128",
    ],
    "eval": lambda model, world, out: ["eval", str(model), "--out", f"{out}/eval.json", "--set", "eval.speed=false"],
}  # fmt: skip


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


MISFITS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "missing": (lambda state: state.pop("model.norm.weight"), "missing keys model.norm.weight"),
    "unexpected": (
        lambda state: state.update({"model.extra.weight": torch.ones(2)}),
        "unexpected keys model.extra.weight",
    ),
    "mismatched": (lambda state: state.update({"model.norm.weight": torch.ones(31)}), "model.norm.weight"),
}


@pytest.mark.faults(7)
@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_key_that_does_not_fit_is_an_error(tmp_path: Path, misfit: str, device: str) -> None:
    """On `meta`, where nothing but shapes is loaded, too."""
    folder = save_tiny_model(tmp_path / "model")
    change, named = MISFITS[misfit]
    change_tensors(folder, change)
    placed = {"device": "meta", "device_map": "meta"} if device == "meta" else {}
    with pytest.raises(InputError, match=named):
        load_model(folder, dtype=torch.float32, **placed)


@pytest.mark.faults(7)
@pytest.mark.parametrize(
    ("command", "misfit"),
    [("prune", "unexpected"), ("distill", "missing"), ("teach", "mismatched"), ("eval", "missing")],
)
def test_every_command_loads_strictly(
    commands: Commands, recipe: Path, store: Path, student: Path, tmp_path: Path, command: str, misfit: str
) -> None:
    folder = save_tiny_model(tmp_path / "model")
    change, named = MISFITS[misfit]
    change_tensors(folder, change)
    done = commands.run([], *COMMANDS[command](folder, recipe.parent, tmp_path / "out"))
    assert done.returncode == 3, done.stderr
    assert named in done.said
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


@pytest.mark.faults(14)
@pytest.mark.parametrize("command", ["distill", "teach", "eval"])
def test_a_flipped_bit_in_a_student_of_ours_is_named(
    commands: Commands, recipe: Path, store: Path, student: Path, finished: Path, tmp_path: Path, command: str
) -> None:
    """Its file is a whole safetensors file of finite numbers; only the recorded SHA-256 tells."""
    made = "student-init" if command == "distill" else "student"
    folder = shutil.copytree(finished / made, tmp_path / "model")
    flip_a_bit(folder / "model.safetensors")
    done = commands.run([], *COMMANDS[command](folder, recipe.parent, tmp_path / "out"))
    assert done.returncode == 3, done.stderr
    assert f"{folder}/model.safetensors" in done.said
    assert "SHA-256" in done.said


@pytest.mark.faults(14)
@pytest.mark.parametrize("damage", [cut_short, lambda file: file.write_bytes(b""), lambda file: file.unlink()])
def test_a_damaged_file_is_named_wherever_a_model_is_loaded(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    folder = save_tiny_model(tmp_path / "model")
    damage(folder / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load_model(folder, dtype=torch.float32)


@pytest.mark.faults(15)
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors .*outside"):
        load_model(folder, dtype=torch.float32)


@pytest.mark.faults(15)
def test_what_transformers_would_load_is_what_is_checked(tmp_path: Path) -> None:
    """It takes model.safetensors before an index, and before both what `transformers_weights` names."""
    folder = save_tiny_model(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "shard.safetensors")
    names = load_file(folder / "shard.safetensors")
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {}, "weight_map": dict.fromkeys(names, "shard.safetensors")},
    )
    load_model(folder, dtype=torch.float32)
    (folder / "model.safetensors").symlink_to(save_tiny_model(tmp_path / "other") / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors .*outside"):
        load_model(folder, dtype=torch.float32)
    (folder / "model.safetensors").unlink()
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "transformers_weights": "../other/model.safetensors"})
    with pytest.raises(InputError, match="transformers_weights"):
        load_model(folder, dtype=torch.float32)
    (folder / "config.json").write_text("[]")
    check_weight_files(folder)  # what the config says otherwise is for whoever reads it


def test_the_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    """models--ORG--NAME/snapshots/COMMIT/FILE -> ../../blobs/SHA."""
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    save_tiny_model(snapshot)
    blobs.mkdir()
    for path in list(snapshot.iterdir()):
        path.rename(blobs / f"blob-of-{path.name}")
        path.symlink_to(Path("..", "..", "blobs", f"blob-of-{path.name}"))
    load_model(snapshot, dtype=torch.float32)


class Bomb:
    """A pickle that makes a file when it is read."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self._mark), "w")


def with_code(folder: Path, mark: Path) -> Path:
    """A model whose config, tokenizer and generation config name code of its own; running any of it makes `mark`."""
    save_tiny_model(folder)
    (folder / "trap.py").write_text(f"open({str(mark)!r}, 'w')\nclass Trap: pass\n")
    classes = {
        "AutoConfig": "trap.Trap",
        "AutoModelForCausalLM": "trap.Trap",
        "AutoTokenizer": ["trap.Trap", "trap.Trap"],
    }
    for name in ("config.json", "tokenizer_config.json"):
        fields = json.loads((folder / name).read_text())
        if name == "config.json":
            fields["model_type"] = "trap"
        (folder / name).write_text(json.dumps({**fields, "auto_map": classes}))
    return folder


def with_pickle(folder: Path, mark: Path) -> Path:
    """A model whose weights are a pickle; reading it makes `mark`."""
    save_tiny_model(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(mark)))
    return folder


@pytest.mark.faults(16)
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("trap", [with_code, with_pickle])
def test_nothing_of_a_model_is_run_whatever_stdin_says(
    commands: Commands, recipe: Path, store: Path, student: Path, tmp_path: Path, command: str,
    trap: Callable[[Path, Path], Path],
) -> None:  # fmt: skip
    mark = tmp_path / "it ran"
    folder = trap(tmp_path / "model", mark)
    arguments = COMMANDS[command](folder, recipe.parent, tmp_path / "out")
    done = commands.run([], *arguments, stdin="y\ny\ny\ny\n")
    assert done.returncode == 3, done.stderr
    assert ("it needs code of its own, which this tool does not run" if trap is with_code else "a pickle") in done.said
    assert not mark.exists()


@pytest.mark.faults(16)
def test_code_beside_a_known_model_type_is_not_run(commands: Commands, tmp_path: Path) -> None:
    """A llama whose folder has an `auto_map` as well loads as the llama it is."""
    mark = tmp_path / "it ran"
    folder = with_code(tmp_path / "model", mark)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "model_type": "llama"}))
    done = commands.run([], "prune", str(folder), str(tmp_path / "out"), stdin="y\ny\ny\ny\n")
    assert done.returncode in (0, 3), done.stderr
    assert not mark.exists()
    assert not list((tmp_path).glob("out/*.py"))


@pytest.mark.faults(22)
@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_heads_round_trip_through_pruning_and_training(
    recipe: Path, store: Path, tmp_path: Path, tied: bool
) -> None:
    teacher = save_tiny_model(tmp_path / "teacher", tie_word_embeddings=tied)
    prune(teacher, tmp_path / "student-init", "1,3", check=False)
    config = DistillConfig(tokens=256, batch_tokens=128, heldout_sequences=0, cpu_tuning=False)
    out = tmp_path / "student"
    distill(config, student=tmp_path / "student-init", teacher=teacher, data=store, out=out, work=tmp_path / "train")
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] == tied
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    saved = load_file(tmp_path / "train" / "checkpoints" / "step-2" / "model.safetensors")
    assert torch.equal(model.model.embed_tokens.weight, saved["model.embed_tokens.weight"])
    if not tied:
        assert torch.equal(model.lm_head.weight, saved["lm_head.weight"])
