"""Twelve model types, each with a pattern of layers that is not uniform.

The oracle does not use the code under test: a dropped layer becomes the identity of the teacher when the last
projections of its attention and of its MLP are zero, since both are added to the residual stream.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import save_tiny_model
from transformers import AutoModelForCausalLM

from compress.model.load import load_model
from compress.prune import PruneResult, prune

SLIDING = {"sliding_window": 6}
TYPES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
    "mistral": SLIDING,
    "qwen2": {**SLIDING, "use_sliding_window": True, "max_window_layers": 3},
    "qwen3": {**SLIDING, "use_sliding_window": True, "max_window_layers": 2, "head_dim": 16},
    "gemma2": {**SLIDING, "head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0},
    "gemma3_text": {
        **SLIDING,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window_pattern": 3,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
        },
    },
    "smollm3": {**SLIDING, "use_sliding_window": True, "no_rope_layers": [1, 0, 0, 1, 1, 0]},
    "olmo2": {},
    "phi3": SLIDING,
    "gpt2": {},
    "gpt_neox": {},
    "opt": {"ffn_dim": 64},
}
LAST_PROJECTIONS = ("o_proj", "down_proj", "c_proj", "dense", "dense_4h_to_h", "out_proj", "fc2")
KEPT = {"alternate": (1, 3, 5), "0,1,4": (0, 1, 4), "contiguous:4": (0, 1, 2, 5), "2:3": (2,), "::": tuple(range(6))}
DERIVED = ("layer_types", "no_rope_layers", "_sliding_window_pattern")


@pytest.fixture(scope="module", params=TYPES)
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    return save_tiny_model(folder, request.param, num_hidden_layers=6, **TYPES[request.param])


@pytest.fixture(scope="module")
def cut(teacher: Path) -> Callable[[str], PruneResult]:
    """Cut the teacher as a keep list says, once."""
    return functools.cache(lambda keep: prune(teacher, teacher.with_name(f"{teacher.name} {keep}"), keep))


def with_zeroed_layers(folder: Path, kept: tuple[int, ...]) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    zeroed = 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parts = name.split(".")
            layer = next((int(part) for part in parts if part.isdigit()), None)
            if layer is not None and layer not in kept and parts[-2] in LAST_PROJECTIONS:
                parameter.zero_()
                zeroed += parameter.dim() > 1
    assert zeroed == 2 * (6 - len(kept))
    return model


@torch.no_grad()
def same_logits(student: Any, teacher: Any) -> bool:
    ids = torch.randint(257, (2, 24), generator=torch.Generator().manual_seed(1))
    expected = teacher(input_ids=ids, use_cache=False).logits
    found = student(input_ids=ids, use_cache=False).logits
    assert expected.std() > 0.1
    return torch.allclose(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.faults(5)
@pytest.mark.parametrize("keep", KEPT)
def test_the_student_is_the_teacher_without_the_dropped_layers(
    teacher: Path, cut: Callable[[str], PruneResult], keep: str
) -> None:
    result = cut(keep)
    assert result.plan.kept_layers == KEPT[keep]
    assert result.check.passed
    student = load_model(result.out, dtype=torch.float32)
    assert student.config.num_hidden_layers == len(KEPT[keep])
    assert same_logits(student, with_zeroed_layers(teacher, KEPT[keep]))


@pytest.mark.faults(5)
@torch.no_grad()
def test_generation_with_a_cache_is_generation_without(cut: Callable[[str], PruneResult]) -> None:
    student = AutoModelForCausalLM.from_pretrained(cut("0,1,4").out).eval()
    ids = torch.randint(200, (1, 9), generator=torch.Generator().manual_seed(2))
    texts = [student.generate(ids, max_new_tokens=14, do_sample=False, use_cache=cached) for cached in (True, False)]
    assert torch.equal(*texts)


@pytest.mark.faults(5)
def test_saving_and_loading_again_changes_nothing(cut: Callable[[str], PruneResult], tmp_path: Path) -> None:
    student = load_model(cut("alternate").out, dtype=torch.float32)
    student.save_pretrained(tmp_path / "again")
    assert same_logits(load_model(tmp_path / "again", dtype=torch.float32), student)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3"])
def test_a_pattern_left_to_its_default_is_written_out(tmp_path: Path, model_type: str) -> None:
    overrides = {key: value for key, value in TYPES[model_type].items() if key not in DERIVED}
    teacher = save_tiny_model(tmp_path / "teacher", model_type, num_hidden_layers=6, **overrides)
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in DERIVED}))
    prune(teacher, tmp_path / "student", "1,2,5")
    student = load_model(tmp_path / "student", dtype=torch.float32)
    assert same_logits(student, with_zeroed_layers(teacher, (1, 2, 5)))
    written = json.loads((tmp_path / "student" / "config.json").read_text())
    assert len(written["layer_types"]) == 3
    assert not {"sliding_window_pattern", "_sliding_window_pattern", "no_rope_layer_interval"} & set(written)
