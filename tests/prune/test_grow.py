"""Grown models: each is the composition of student and teacher in float64, and the order is the greedy one."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import run_cli, save_tiny_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.base.disk import sha256_file
from compress.base.errors import InputError, UsageError
from compress.prune import GrowConfig, grow, grow_family, prune
from compress.prune.choose.calibration import load_calibration
from compress.prune.parts import Amount

LAYERS, KEPT = 7, (0, 3, 6)
MISSING = tuple(sorted(set(range(LAYERS)) - set(KEPT)))
SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 3 + ["sliding_attention"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teachers of two types, their cuts as a training might leave them, and some text."""
    folder = tmp_path_factory.mktemp("grow")
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 7))) for _ in range(50)]
    lines = [json.dumps({"text": " ".join(rng.choices(words, k=9))}) for _ in range(70)]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
    for kind, fields in (("llama", {}), ("gemma3_text", SLIDING), ("gpt2", {"n_positions": 256})):
        made = folder / kind
        save_tiny_model(made / "teacher", kind, num_hidden_layers=LAYERS, **fields)
        prune(made / "teacher", made / "student-init", ",".join(map(str, KEPT)))
        heal(made / "student-init", made / "student")
    return folder


def heal(cut: Path, out: Path, dtype: torch.dtype = torch.float32) -> None:
    """Leave a student as a training would: other weights everywhere, and a record that names where it began."""
    model = AutoModelForCausalLM.from_pretrained(cut)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.to(dtype).save_pretrained(out)
    AutoTokenizer.from_pretrained(cut).save_pretrained(out)
    (out / "distill.json").write_text(json.dumps({"student": str(cut)}))


def composed(made: Path, layers: tuple[int, ...], ids: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Logits of the student in whose stack the teacher's blocks stand where they were dropped."""
    teacher, student = (
        AutoModelForCausalLM.from_pretrained(made / name, dtype=dtype) for name in ("teacher", "student")
    )
    stack = (lambda model: model.transformer.h) if hasattr(student, "transformer") else lambda model: model.model.layers
    blocks = [stack(student)[KEPT.index(layer)] if layer in KEPT else stack(teacher)[layer] for layer in layers]
    owner = getattr(student, "transformer", None) or student.model
    setattr(owner, "h" if hasattr(owner, "h") else "layers", nn.ModuleList(blocks))
    student.config.num_hidden_layers = len(layers)
    if hasattr(student.config, "layer_types") and hasattr(teacher.config, "layer_types"):
        student.config.layer_types = [teacher.config.layer_types[layer] for layer in layers]
    return student(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2"])
@torch.no_grad()
def test_each_grown_model_loads_in_transformers_and_equals_the_composition_in_float64(
    place: Path, tmp_path: Path, kind: str
) -> None:
    made = place / kind
    result = grow_family(made / "student", made / "teacher", tmp_path / "out", GrowConfig(by="last"))
    assert [model.out.name for model in result.models] == ["4", "5", "6"]
    ids = torch.randint(256, (2, 24), generator=torch.Generator().manual_seed(3))
    for model, put_back in zip(result.models, ([5], [5, 4], [5, 4, 2]), strict=True):
        layers = tuple(sorted([*KEPT, *put_back]))
        assert (model.record["kept_layers"], model.record["put_back"]) == (layers, put_back)
        grown = AutoModelForCausalLM.from_pretrained(model.out, dtype=torch.float64)
        expected = composed(made, layers, ids)
        torch.testing.assert_close(grown(input_ids=ids, use_cache=False).logits, expected, rtol=0, atol=1e-12)
        assert grown.num_parameters() == model.record["params"]
        assert model.record["sha256"] == {
            path.name: sha256_file(path) for path in model.out.iterdir() if path.name != "grow.json"
        }


def test_the_first_blocks_can_be_put_back_first_up_to_the_whole_stack(place: Path, tmp_path: Path) -> None:
    made = place / "llama"
    result = grow(made / "student", made / "teacher", tmp_path / "out", GrowConfig(by="first", layers=(LAYERS,)))
    assert result.record["put_back"] == list(MISSING)
    grown, student, teacher = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "out", made / "student", made / "teacher")
    )
    for name, value in grown.items():
        layer = int(name.split(".")[2]) if ".layers." in name else None
        source = teacher if layer in MISSING else student
        old = name if layer in (None, *MISSING) else name.replace(f".{layer}.", f".{KEPT.index(layer)}.")
        assert torch.equal(value, source[old]), name


@torch.no_grad()
def test_the_measured_order_is_the_greedy_one_by_kl_from_the_teacher(place: Path, tmp_path: Path) -> None:
    made = place / "llama"
    config = GrowConfig(calibration=str(place / "text.jsonl"), calibration_seq_len=64, calibration_tokens=64 * 8)
    result = grow_family(made / "student", made / "teacher", tmp_path / "out", config)
    every = 8 * 63  # predicted tokens
    ids = torch.from_numpy(load_calibration(config, made / "teacher", Amount(512, 64)).rows)
    teacher = AutoModelForCausalLM.from_pretrained(made / "teacher")

    def divergence(layers: tuple[int, ...], rows: Tensor) -> float:
        """KL over the teacher's 64 likeliest tokens and the rest, of whole models that are run anew."""
        p = teacher(input_ids=rows).logits[:, :-1].double().softmax(-1)
        q = composed(made, layers, rows, torch.float32)[:, :-1].double().softmax(-1)
        top = p.topk(64).indices
        p, q = (torch.cat([x.gather(-1, top), 1 - x.gather(-1, top).sum(-1, keepdim=True)], -1) for x in (p, q))
        return float((p * (p / q).log()).sum(-1).mean())

    chosen: list[int] = []
    first = ids[:: every // result.record["order"]["kl_nats_tokens"]]
    assert result.record["order"]["kl_nats"] == pytest.approx(divergence(KEPT, first), rel=1e-4)
    for step in result.record["order"]["steps"]:
        left = [layer for layer in MISSING if layer not in chosen]
        rows = ids[:: every // step["tokens"]]
        trial = {layer: divergence(tuple(sorted([*KEPT, *chosen, layer])), rows) for layer in left}
        assert step["kl_nats"] == pytest.approx(trial[step["put_back"]], rel=1e-4)
        assert step["tokens"] < every or min(trial, key=lambda layer: trial[layer]) == step["put_back"]
        chosen.append(step["put_back"])
    assert result.models[-1].record["put_back"] == chosen
    assert len(chosen) == len(MISSING) - 1


def test_a_student_stored_in_other_bits_is_grown_in_its_own(place: Path, tmp_path: Path) -> None:
    made = place / "llama"
    heal(made / "student-init", tmp_path / "student", torch.bfloat16)
    config = GrowConfig(by="last", layers=(5,))
    grown = tmp_path / "grown"
    result = grow(tmp_path / "student", made / "teacher", grown, config)
    weights, teacher = load_file(grown / "model.safetensors"), load_file(made / "teacher" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    name = "model.layers.{}.mlp.down_proj.weight"
    assert torch.equal(weights[name.format(3)], teacher[name.format(5)].bfloat16())
    assert (result.record["dtype"], json.loads((grown / "config.json").read_text())["dtype"]) == (
        "bfloat16",
        "bfloat16",
    )


def test_what_does_not_belong_together_is_refused_and_nothing_is_left(place: Path, tmp_path: Path) -> None:
    made, out = place / "llama", tmp_path / "out"

    def refused(student: Path, teacher: Path, expected: str, error: Any = InputError, **options: Any) -> None:
        with pytest.raises(error, match=expected):
            grow_family(student, teacher, out, GrowConfig(**{"by": "last", **options}))
        assert not out.exists()

    other = save_tiny_model(tmp_path / "other", num_hidden_layers=LAYERS, seed=5)
    refused(made / "student", other, "is not the model that .* was cut from: model.safetensors differ")
    refused(other, made / "teacher", "Nothing says which layers .* has: there is no prune.json")
    refused(made / "student", made / "teacher", "write numbers from 4 to 7", UsageError, layers=(3, 8))
    refused(made / "student", made / "teacher", "needs text: name it with --calibration", UsageError, by="kl-greedy")
    wide = shutil.copytree(made / "student", tmp_path / "wide" / "student")
    tensors = load_file(wide / "model.safetensors")
    tensors["model.layers.1.extra"] = torch.zeros(3)
    save_file(tensors, wide / "model.safetensors")
    refused(wide, made / "teacher", "Layer 1 of .* is not like layer 3 .*: extra differ")


def test_the_command_plans_makes_one_model_or_several_and_a_grown_one_grows_on(place: Path, tmp_path: Path) -> None:
    made, out = place / "llama", tmp_path / "out"
    models = (str(made / "student"), str(made / "teacher"))
    text = ("--calibration", str(place / "text.jsonl"), "--calibration-tokens", "512", "--set", "grow.dtype=float32")
    planned = run_cli("grow", *models, str(out), "--layers", "4,6", *text, "--dry-run", "--json")
    assert not out.exists()
    grown = json.loads(run_cli("grow", *models, str(out), "--layers", "4,6", *text, "--json").stdout)
    assert {size: len(kept) for size, kept in grown["sizes"].items()} == {"4": 4, "6": 6}
    sizes = {size: json.loads((out / size / "grow.json").read_text()) for size in ("4", "6")}
    assert json.loads(planned.stdout)["parameters"] == {size: record["params"] for size, record in sizes.items()}
    assert set(sizes["4"]["kept_layers"]) < set(sizes["6"]["kept_layers"])
    again = run_cli("grow", *models, str(out), "--layers", "5", "--by", "last")
    assert again.returncode == 2
    assert "not empty" in again.stderr
    one = run_cli("grow", str(out / "4"), models[1], str(tmp_path / "one"), "--layers", "5", "--by", "last")
    assert "put back 5" in one.stdout or "put back 4" in one.stdout
    assert json.loads((tmp_path / "one" / "grow.json").read_text())["student_layers"] == sizes["4"]["kept_layers"]
