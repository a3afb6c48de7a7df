"""Vision-language models cut: equal to their teachers with layers taken out, on text and on images, by plain
transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_world import write_text
from helpers import tiny_config
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from vision_world import CLASSES, PROCESSORS, draw, image_inputs, save_vlm

from compress.base.disk import read_json
from compress.base.errors import InputError, UsageError
from compress.model.costs import model_costs
from compress.model.kinds import VISION_TYPES
from compress.model.load import load_config
from compress.prune import PruneConfig, plan_prune, prune
from compress.prune.growth.config import GrowConfig
from compress.prune.growth.step import grow

KEPT = (0, 2)


def without(folder: Path, dropped: tuple[int, ...]) -> Any:
    """The model of a folder whose dropped layers return what they are given."""
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    (stack,) = (m for name, m in model.named_modules() if name.endswith(("language_model.layers", "text_model.layers")))
    for layer in dropped:
        stack[layer].forward = lambda hidden_states, *_, **__: hidden_states
    return model


def of_vision(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of tower and projector, by their names on disk."""
    weights = load_file(folder / "model.safetensors")
    return {
        name: value
        for name, value in weights.items()
        if any(w in name for w in ("vis", "project", "connector", "image_newline"))
    }


@pytest.mark.parametrize("model_type", CLASSES)
def test_a_cut_is_the_teacher_without_those_layers_with_and_without_images(model_type: str, tmp_path: Path) -> None:
    teacher = save_vlm(tmp_path / "teacher", model_type)
    result = prune(str(teacher), tmp_path / "student", "0,2")
    assert result.check.passed
    compared = result.check.max_abs_difference_image is not None
    assert compared == (model_type in PROCESSORS)
    assert (result.check.no_image is None) == compared
    student = tmp_path / "student"
    model, info = AutoModelForImageTextToText.from_pretrained(student, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected, inputs = without(teacher, (1, 3)), image_inputs(model_type)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(**inputs).logits, expected(**inputs).logits)
        ids = inputs["input_ids"][:, :6]
        torch.testing.assert_close(model(input_ids=ids).logits, expected(input_ids=ids).logits)
    for name, value in of_vision(teacher).items():
        assert torch.equal(of_vision(student)[name], value), name
    for name in ("processor_config.json", "chat_template.jinja"):
        if (teacher / name).exists():
            assert (student / name).read_bytes() == (teacher / name).read_bytes()
    parts = result.plan.parts_before["vision"], result.plan.parts_after["vision"]
    assert parts == (sum(v.numel() for v in of_vision(teacher).values()),) * 2


@pytest.mark.parametrize("model_type", PROCESSORS)
def test_a_student_writes_about_an_image_with_plain_transformers(model_type: str, tmp_path: Path) -> None:
    prune(str(save_vlm(tmp_path / "teacher", model_type)), tmp_path / "student", "0,3")
    processor = AutoProcessor.from_pretrained(tmp_path / "student")
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    text = processor.apply_chat_template(asked, add_generation_prompt=True)
    inputs = processor(text=[text], images=[[draw(1)]], return_tensors="pt")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "student")
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] > inputs["input_ids"].shape[1]


def test_all_accepted_types_are_cut_here_and_others_are_refused_by_name(tmp_path: Path) -> None:
    assert set(VISION_TYPES) == set(CLASSES)
    for model_type, why in (
        ("qwen3_vl", "features of the image by their number"),
        ("mllama", "layers of its own, by their number"),
        ("aya_vision", "nobody has found out how"),
    ):
        AutoConfig.for_model(model_type).save_pretrained(tmp_path / model_type)
        with pytest.raises(InputError, match=f"A {model_type} model cannot be cut by layers: .*{why}"):
            plan_prune(str(tmp_path / model_type))


def test_a_config_with_the_fields_of_its_language_model_beside_the_others_stays_so(tmp_path: Path) -> None:
    """As Qwen/Qwen2-VL-2B-Instruct has it."""
    teacher = save_vlm(tmp_path / "teacher", "qwen2_vl")
    config = read_json(teacher / "config.json")
    text = {name: value for name, value in config.pop("text_config").items() if name not in ("model_type", "dtype")}
    (teacher / "config.json").write_text(json.dumps({**text, **config}))
    assert prune(str(teacher), tmp_path / "student", "0,2").check.passed
    cut = read_json(tmp_path / "student" / "config.json")
    assert (cut["num_hidden_layers"], "text_config" in cut) == (2, False)
    with torch.no_grad():
        inputs = image_inputs("qwen2_vl")
        student = AutoModelForImageTextToText.from_pretrained(tmp_path / "student").eval()
        torch.testing.assert_close(student(**inputs).logits, without(teacher, (1, 3))(**inputs).logits)


def test_a_token_of_text_costs_what_it_costs_in_the_language_model(tmp_path: Path) -> None:
    costs = model_costs(load_config(save_vlm(tmp_path / "teacher", "llava")))
    alone = model_costs(tiny_config(vocab_size=320, head_dim=8, max_position_embeddings=512, tie_word_embeddings=False))
    assert (costs.weight_flops, costs.attention, costs.cache) == (alone.weight_flops, alone.attention, alone.cache)
    assert sum(costs.parameters.values()) - costs.parameters["vision"] == sum(alone.parameters.values())


def test_layers_are_chosen_repaired_and_grown_by_text(tmp_path: Path) -> None:
    teacher, text = save_vlm(tmp_path / "teacher", "llava"), write_text(tmp_path / "text.jsonl", 60)
    config = PruneConfig(layers=2, by="kl-greedy", calibration=str(text), calibration_tokens=512, repair=True)
    result = prune(str(teacher), tmp_path / "student", config.choice, **config.how)
    assert len(result.plan.kept_layers) == 2
    more = GrowConfig(layers=(3,), calibration=str(text), calibration_tokens=512)
    grow(tmp_path / "student", str(teacher), tmp_path / "grown", more)
    for folder, layers in (("student", 2), ("grown", 3)):
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / folder)
        assert model.config.text_config.num_hidden_layers == layers
        model(**image_inputs("llava"))


def test_what_nobody_has_tried_is_refused_by_name(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from compress.cli import cli

    teacher, text = str(save_vlm(tmp_path / "teacher", "llava")), str(write_text(tmp_path / "text.jsonl", 60))
    out = str(tmp_path / "out")
    for command in (
        ("generate", teacher, text, out),
        ("trim", teacher, out, "--data", text),
        ("init", teacher, "--layers", "2", "--out", out),
        ("export", teacher, out, "--format", "bf16"),
        ("merge", teacher, teacher, out),
    ):
        done = CliRunner().invoke(cli, command)
        assert isinstance(done.exception, UsageError), (command, done.output, done.exception)
        assert "is not for vision-language models" in str(done.exception), command
        assert not Path(out).exists(), command
