"""Exports: each is, to float tolerance, the model whose weights are those that it holds, and these are near enough."""

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from helpers import run_cli, save_tiny_model
from pair_tokenizer import VOCABULARY, pair_tokenizer
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.base.disk import sha256_file
from compress.base.errors import CompressError, InputError, UsageError
from compress.model.load import load_model
from compress.ship import ExportConfig, export

FORMATS = ("int8", "int4", "gguf-f16", "gguf-q8_0", "gguf-q4_0", "bf16", "f16", "f32")
TEXT = "The 12 cats <think> an' then 2012\n\n  déjà vu 🙂<eos>"


def make(folder: Path, kind: str = "llama", split: str = "gpt-2", dtype: str = "float32", **fields: Any) -> Path:
    """A model of 64 numbers a row, a vocabulary padded beyond its tokenizer, and untied embeddings unless asked."""
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": VOCABULARY + 7}
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), VOCABULARY - 2)
    save_tiny_model(folder, kind, **{"tie_word_embeddings": False, **shape, **ids, **fields})
    if dtype != "float32":
        AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).save_pretrained(folder)
    pair_tokenizer(split).save_pretrained(folder)
    (folder / "LICENSE").write_text("do as you like")
    return folder


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("student") / "m")


def skip_without_torchao(name: str) -> None:
    if name in ("int8", "int4"):
        pytest.importorskip("torchao")


def loaded(out: Path, name: str) -> Any:
    """What transformers alone makes of an export."""
    if not name.startswith("gguf"):
        return AutoModelForCausalLM.from_pretrained(out).eval()
    file = {"gguf_file": f"model-{name.removeprefix('gguf-')}.gguf"}
    return AutoModelForCausalLM.from_pretrained(out, **file, dtype=torch.float32).eval()


def held(out: Path, name: str, config: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Each weight in float64 as the file has it, and the step between neighbouring numbers where it stands, by
    transformers' name; read without transformers."""
    if name.startswith("gguf"):
        return held_in_gguf(next(out.glob("*.gguf")), config)
    found, stored = {}, load_file(out / "model.safetensors")
    for key, value in stored.items():
        if key.endswith("_weight_qdata"):
            scale = stored[key.replace("qdata", "scale")].double()
            step = scale.repeat_interleave(value.shape[1] // scale.shape[1], 1)
            found[key.replace("_weight_qdata", "weight")] = (value.double() * step, step)
        elif not re.search("_weight_(scale|zero_point)$", key):
            digits = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23}[value.dtype]
            smallest = 2.0**-24 if value.dtype == torch.float16 else 0.0
            found[key] = (value.double(), (value.double().abs() * 2.0**-digits).clamp_min(smallest))
    return found


def held_in_gguf(file: Path, config: Any) -> dict[str, tuple[Tensor, Tensor]]:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    stems = ("embed_tokens", "norm", *(f"layers.{i}.{part}" for i in range(config.num_hidden_layers) for part in (
        "input_layernorm", "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
        *(f"self_attn.{x}_proj" for x in "qkvo"))))  # fmt: skip
    ours = {names.get_name(key): key for key in ("lm_head", *(f"model.{stem}" for stem in stems))}
    found = {}
    for tensor in gguf.GGUFReader(file).tensors:
        shape = tuple(int(size) for size in reversed(tensor.shape))
        value = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(shape).astype(np.float64)
        if tensor.tensor_type.name.startswith("Q"):
            bytes_, (_, size) = tensor.data.reshape(shape[0], -1), gguf.GGML_QUANT_SIZES[tensor.tensor_type]
            scales = np.ascontiguousarray(bytes_.reshape(shape[0], -1, size)[..., :2]).view(np.float16)
            step = np.abs(np.repeat(scales.reshape(shape[0], -1), 32, 1).astype(np.float64))
        else:
            step = np.maximum(np.abs(value) * 2.0**-10, 2.0**-24)
        key = ours[tensor.name.removesuffix(".weight")]
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(key.rpartition(".")[2])
        if heads:  # neighbours rotate together in the file, halves of a head in transformers
            value, step = (x.reshape(heads, -1, 2, shape[1]).swapaxes(1, 2).reshape(shape) for x in (value, step))
        found[f"{key}.weight"] = (torch.from_numpy(value), torch.from_numpy(step))
    return found


@pytest.mark.parametrize("name", FORMATS)
@torch.no_grad()
def test_an_export_is_the_model_with_the_weights_that_it_holds_and_these_are_within_half_a_step(
    student: Path, tmp_path: Path, name: str
) -> None:
    skip_without_torchao(name)
    out = tmp_path / "out"
    record = export(student, out, ExportConfig(format=(name,))).record  # type: ignore[arg-type]
    original = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float64)
    weights, own = held(out, name, original.config), original.state_dict()
    assert weights.keys() == own.keys()
    for key, (value, step) in weights.items():
        # q4_0 has 16 numbers from -8 to 7 times a scale whose sign is the largest number's: there 7 stands for 8
        width = step if name == "gguf-q4_0" else step / 2
        slack = value.abs() * 2.0**-10 if "q" in name else 0.0  # a float16 scale is itself rounded
        assert bool(((value - own[key]).abs() <= width * (1 + 2**-12) + slack).all()), key
    original.load_state_dict({key: value for key, (value, _) in weights.items()})
    made = loaded(out, name)
    ids = torch.randint(VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(1))
    expected = original(input_ids=ids, use_cache=False).logits
    found = made(input_ids=ids, use_cache=False).logits.double()
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}[made.dtype]
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))
    assert record["sha256"] == {p.name: sha256_file(p) for p in out.iterdir() if p.name != "export.json"}
    assert (out / "LICENSE").read_text() == "do as you like"


@pytest.mark.parametrize("split", ["gpt-2", "smollm"])
def test_the_tokenizer_in_a_gguf_file_is_the_models(tmp_path: Path, split: str) -> None:
    folder = make(tmp_path / "m", split=split, tie_word_embeddings=True)
    export(folder, tmp_path / "out", ExportConfig(format=("gguf-q8_0",)))
    written = AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="model-q8_0.gguf")
    own = AutoTokenizer.from_pretrained(folder)
    if split == "gpt-2":
        assert written(TEXT)["input_ids"] == own(TEXT)["input_ids"]
    assert written.eos_token == "<eos>"
    fields = gguf.GGUFReader(tmp_path / "out" / "model-q8_0.gguf")
    assert fields.get_field("tokenizer.ggml.pre").contents() == split  # type: ignore[union-attr]
    assert "output.weight" not in {tensor.name for tensor in fields.tensors}  # tied


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
@torch.no_grad()
def test_other_types_that_gguf_names_load_as_the_same_model(tmp_path: Path, kind: str) -> None:
    folder = make(tmp_path / "m", kind)
    record = export(folder, tmp_path / "out", ExportConfig(format=("gguf-f16",))).record
    made, original = loaded(tmp_path / "out", "gguf-f16"), AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(20)[None]
    expected = original(input_ids=ids).logits
    torch.testing.assert_close(made(input_ids=ids).logits, expected, rtol=0, atol=0.01 * float(expected.abs().max()))
    assert record["check"]["skipped"] is None


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_a_model_in_bf16_is_quantised_as_one_in_float32_and_ours_loads_it_in_what_it_computes_in(
    tmp_path: Path, name: str
) -> None:
    pytest.importorskip("torchao")
    folder = make(tmp_path / "m", dtype="bfloat16")
    out = tmp_path / "out"
    export(folder, out, ExportConfig(format=(name,)))  # type: ignore[arg-type]
    own = load_file(folder / "model.safetensors")
    weights = held(out, name, None)
    halves = 0.5 + 2**-5 if name == "int4" else 0.5 + 2**-8  # of quotients up to 8, which torchao rounds to bf16
    for key, (value, step) in weights.items():
        assert bool(((value - own[key].double()).abs() <= step * halves).all()), key
    made = load_model(out, dtype=torch.float32)
    assert made.dtype == (torch.bfloat16 if name == "int4" else torch.float32)
    assert made(input_ids=torch.arange(9)[None]).logits.isfinite().all()


def test_what_cannot_be_exported_is_refused_and_nothing_is_left(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def refused(folder: Path, name: str, expected: str, error: Any = InputError, **options: Any) -> None:
        with pytest.raises(error, match=expected):
            export(folder, out, ExportConfig(format=(name,), **options))  # type: ignore[arg-type]
        assert not out.exists()

    gpt2 = save_tiny_model(tmp_path / "gpt2", "gpt2", n_positions=256)
    refused(gpt2, "gguf-q8_0", "of the type gpt2, which is not exported as GGUF")
    refused(make(tmp_path / "words", split="words"), "gguf-f16", "splits text as GPT-2")
    scaled = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}
    refused(make(tmp_path / "scaled", **scaled), "gguf-f16", "rope_parameters.rope_type = linear")
    refused(make(tmp_path / "biased", attention_bias=True), "gguf-f16", "attention_bias = True")
    large = make(tmp_path / "large")
    model = AutoModelForCausalLM.from_pretrained(large)
    model.lm_head.weight.data[0, 0] = 1e6
    model.save_pretrained(large)
    refused(large, "gguf-f16", "too large for float16")
    refused(large, "f16", "too large for float16")
    pytest.importorskip("torchao")
    refused(gpt2, "int8", "no linear layers that torchao knows")
    refused(student, "int4", "have 64 weights, no multiple of group_size = 128", group_size=128)
    export(student, tmp_path / "int8", ExportConfig(format=("int8",)))
    refused(tmp_path / "int8", "bf16", "is quantised already .torchao., and cannot be exported")
    monkeypatch.setattr("compress.base.packages.find_spec", lambda _: None)
    refused(student, "int8", "needs the package torchao: `pip install 'compress.quant.'`", UsageError)


@pytest.mark.parametrize("fault", ["rows", "positions"])
def test_a_file_that_is_another_model_is_caught_when_it_is_read_back(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    if fault == "rows":
        monkeypatch.setattr("compress.ship.exporting.gguf_file._arranged", lambda value, *_: value)
    else:
        monkeypatch.setattr(
            gguf.GGUFWriter, "add_rope_freq_base", lambda to, _: to.add_float32("llama.rope.freq_base", 9)
        )
    with pytest.raises(CompressError, match="off by" if fault == "rows" else "logits of the gguf-f16 export differ"):
        export(student, tmp_path / "out", ExportConfig(format=("gguf-f16",)))
    assert not (tmp_path / "out").exists()


def test_the_command_writes_one_format_or_several_over_nothing_and_says_what(student: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    planned = run_cli("export", str(student), out, "--format", "f16,gguf-f16", "--dry-run")
    assert "f16, gguf-f16" in planned.stdout
    assert not Path(out).exists()
    done = json.loads(run_cli("export", str(student), out, "--format", "f16,gguf-f16", "--json").stdout)
    assert done.keys() == {"f16", "gguf-f16"}
    assert done["f16"]["bits_per_weight"] == pytest.approx(16, rel=0.05)
    assert sorted(p.name for p in Path(out, "gguf-f16").iterdir()) == [
        "LICENSE", "README.md", "export.json", "model-f16.gguf",
    ]  # fmt: skip
    again = run_cli("export", str(student), out, "--format", "bf16")
    assert (again.returncode, "not empty" in again.stderr) == (2, True)
    wrong = run_cli("export", str(student), str(tmp_path / "x"), "--format", "int3")
    assert wrong.returncode == 2
    assert "'int8', 'int4', 'gguf-f16'" in wrong.stderr
