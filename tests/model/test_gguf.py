"""GGUF files as models: the weights and ids that transformers reads, found again, and refused with a reason."""

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from gguf_world import VOCABULARY, write_gguf
from helpers import run_cli
from run_world import write_recipe
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.base.currency import Missing
from compress.base.disk import sha256_file
from compress.base.errors import InputError, UsageError
from compress.base.progress import say_once
from compress.model import gguf
from compress.model.files import local_model, model_fingerprint, resolve_model
from compress.model.gguf_header import read_header
from compress.model.load import load_model, load_tokenizer

TEXT = "the other café 東 \n\t12"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of conversions, empty, and nothing said yet."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "home"))
    say_once.cache_clear()
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("stored", "dtype", "bits"),
    [
        ("F32", "float32", "weights in F32, kept as float32"),
        ("F16", "float16", "weights in F16, kept as float16"),
        ("BF16", "bfloat16", "weights in BF16, kept as bfloat16"),
        ("Q8_0", "bfloat16", "weights of 8 bits (Q8_0), dequantised to bfloat16; scores are the quantised model's"),
        ("Q4_0", "bfloat16", "weights of 4 bits (Q4_0), dequantised to bfloat16; scores are the quantised model's"),
    ],
)
def test_a_model_is_what_transformers_reads_rounded_to_the_dtype_that_is_stored(
    stored: str, dtype: str, bits: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model.gguf"
    original = write_gguf(file, stored=stored)
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).state_dict()
    folder = resolve_model(str(file))
    assert bits in capfd.readouterr().err
    stored_weights = load_file(folder / "model.safetensors")
    assert stored_weights
    assert all(
        torch.equal(weights, expected[name].to(getattr(torch, dtype))) and weights.dtype == getattr(torch, dtype)
        for name, weights in stored_weights.items()
    )
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == dtype
    assert "quantization_config" not in config
    model = load_model(folder, dtype=torch.float32)
    if stored == "F32":
        assert all(torch.equal(value, original.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_tokenizer_gives_the_ids_of_the_file(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf")
    tokenizer = load_tokenizer(resolve_model(str(tmp_path / "model.gguf")))
    ids = tokenizer(TEXT)["input_ids"]
    assert ids == AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")(TEXT)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == TEXT
    assert VOCABULARY - 1 in ids
    assert tokenizer.eos_token == "<eos>"


def test_a_file_is_converted_once_and_known_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, moved = tmp_path / "model.gguf", tmp_path / "renamed.gguf"
    write_gguf(file)
    with pytest.raises(Missing, match="is not converted"):
        local_model(str(file), None)
    folder = resolve_model(str(file))
    assert model_fingerprint(folder) == {"model.gguf": sha256_file(file)}
    monkeypatch.setattr("compress.model.gguf_conversion.read_gguf", None)  # whoever converts again, fails
    file.rename(moved)
    assert resolve_model(str(moved)) == local_model(str(moved), None) == folder
    with pytest.raises(Missing, match="is not here"):
        local_model(str(file), None)


def test_files_beside_a_gguf_are_no_part_of_it(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "a"}')
    folder = resolve_model(str(tmp_path / "model.gguf"))
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    assert load_tokenizer(folder).eos_token == "<eos>"


def test_a_converted_model_that_was_changed_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf")
    folder = resolve_model(str(tmp_path / "model.gguf"))
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match="does not match its SHA-256"):
        load_model(folder, dtype=torch.float32)


@pytest.mark.parametrize(
    ("name", "how", "why"),
    [
        ("model-00001-of-00002.gguf", {}, "one part of a model in several files.*llama-gguf-split --merge"),
        ("model.gguf", {"fields": {"split.count": 2}}, "one part of a model in several files"),
        ("model.gguf", {"tokenizer": False}, "has no tokenizer"),
        ("model.gguf", {"arch": "clip"}, "transformers cannot read .* clip is not supported yet"),
        ("model.gguf", {"but": ("blk.2.ffn_up.weight",)}, r"it lacks model\.layers\.2\.mlp\.up_proj\.weight"),
        ("model.gguf", {"more": ("rope_freqs.weight",)}, "scales its positions by tensors"),
        ("model.gguf", {"fields": {"llama.rope.scaling.type": "yarn"}}, r"scales its positions \(yarn\)"),
    ],
)
def test_what_would_be_no_model_or_another_one_is_refused(
    name: str, how: dict[str, Any], why: str, tmp_path: Path, home: Path
) -> None:
    write_gguf(tmp_path / name, **how)
    with pytest.raises(InputError, match=why):
        resolve_model(str(tmp_path / name))
    assert not [path for path in home.rglob("*") if path.suffix != ".lock" and path.parent.name == "gguf"]


def test_a_damaged_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(file)
    whole = file.read_bytes()
    for length in (0, 3, 4, 20, 100, 3000, len(whole) // 2, len(whole) - 64):
        file.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"Download it again\."):
            read_header(file)
    file.write_bytes(b"GGUF\1\0\0\0" + whole[8:])
    with pytest.raises(InputError, match="GGUF version 1"):
        read_header(file)


def test_a_disk_without_room_is_said_before_it_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "model.gguf", stored="Q8_0")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(1000))
    with pytest.raises(UsageError, match=r"as bfloat16, and the disk .* 1000 B free: free some, or set HF_HOME"):
        resolve_model(str(tmp_path / "model.gguf"))


def test_a_file_that_is_not_there_is_no_hub_id(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The model file .*none\.gguf does not exist"):
        resolve_model(str(tmp_path / "none.gguf"))
    (tmp_path / "some.gguf").touch()
    with pytest.raises(InputError, match=r"has no config\.json\. Name the file itself: .*some\.gguf\."):
        resolve_model(str(tmp_path))


def test_a_run_takes_a_gguf_teacher_and_knows_it_again(tmp_path: Path, home: Path) -> None:
    recipe, file = write_recipe(tmp_path), tmp_path / "teacher.gguf"
    write_gguf(file, stored="Q8_0")
    recipe.write_text(recipe.read_text().replace(f"{tmp_path}/teacher}}", f"{file}}}"))
    run = ("run", str(recipe), "--out", str(tmp_path / "run"), "--json")
    assert run_cli(*run, HF_HOME=str(home)).returncode == 0
    made = json.loads((tmp_path / "run" / "student-init" / "prune.json").read_text())["manifest"]
    assert made["inputs"]["teacher"] == {"model.gguf": sha256_file(file)}
    assert run_cli("verify", str(tmp_path / "run"), HF_HOME=str(home)).returncode == 0
    again = run_cli(*run, HF_HOME=str(home))
    assert again.stderr.count("done, unchanged") == 7
    write_gguf(file, stored="Q4_0")
    other = run_cli(*run, HF_HOME=str(home))
    assert (other.returncode, "the teacher is another" in other.stderr) == (2, True)


def test_commands_take_a_gguf_model(tmp_path: Path, home: Path) -> None:
    file, student, scores = tmp_path / "m.gguf", tmp_path / "student", tmp_path / "scores.json"
    write_gguf(file, stored="Q8_0")
    assert run_cli("prune", str(file), str(student), "--keep", "0,3", HF_HOME=str(home)).returncode == 0
    assert not (student / gguf.GGUF_RECORD).exists()
    text = tmp_path / "text.txt"
    text.write_text("the other line of text\n" * 300)
    given = ("--text", str(text), "--set", "eval.heldout_seq_len=32", "--set", "eval.speed=false")
    done = run_cli("eval", str(student), "--teacher", str(file), *given, "--out", str(scores), HF_HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert json.loads(scores.read_text())["fidelity"]["kl_nats"] > 0
