"""Masked language models cut: equal to their teachers with layers taken out, and loaded by plain transformers."""

import json
from pathlib import Path

import pytest
import torch
from encoder_world import CLASSES, VOCABULARY, save_encoder, write_text
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    T5Config,
    T5ForConditionalGeneration,
)

from compress.base.disk import read_json
from compress.base.errors import InputError, UsageError
from compress.model.kinds import kind_of
from compress.model.load import load_config
from compress.prune import PruneConfig, prune

STACKS = {"distilbert": "transformer.layer", "modernbert": "layers"}


@pytest.mark.parametrize("model_type", CLASSES)
def test_a_cut_is_the_teacher_without_those_layers(model_type: str, tmp_path: Path) -> None:
    teacher = save_encoder(tmp_path / "teacher", model_type)
    result = prune(str(teacher), tmp_path / "student", "0,2")
    assert result.check.passed
    assert result.check.max_abs_difference_cached is None
    assert "KV a token" not in result.describe()
    record = read_json(tmp_path / "student" / "prune.json")
    assert (record["kind"], record["kept_layers"], record["cache_bytes_before"]) == ("masked", [0, 2], 0)

    student, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    whole = AutoModelForMaskedLM.from_pretrained(teacher).eval()
    stack = whole.base_model.get_submodule(STACKS.get(model_type, "encoder.layer"))
    del stack[3], stack[1]
    ids = torch.randint(5, len(VOCABULARY), (2, 30), generator=torch.Generator().manual_seed(1))
    if model_type == "modernbert":  # its masks are chosen by the config, by the layer's number
        whole.config.layer_types = [whole.config.layer_types[layer] for layer in (0, 2)]
    with torch.no_grad():
        torch.testing.assert_close(student.eval()(ids).logits, whole(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "student").mask_token == "[MASK]"


@pytest.mark.parametrize(
    ("model_type", "changes", "why"),
    [("modernbert", {}, "no norm before its attention"), ("deberta-v2", {"conv_kernel_size": 3}, "the convolution")],
)
def test_a_first_layer_unlike_others_stays(model_type: str, changes: dict[str, int], why: str, tmp_path: Path) -> None:
    teacher = save_encoder(tmp_path / "teacher", model_type, **changes)
    with pytest.raises(InputError, match=f"layer 0 must stay: .*{why}"):
        prune(str(teacher), tmp_path / "student", "1:")
    assert prune(str(teacher), tmp_path / "student", "0,3").check.passed


def test_weights_of_pretraining_stay_where_they_are_and_others_are_refused(tmp_path: Path) -> None:
    """As google-bert/bert-base-uncased has them: a pooler, and a head for the next sentence."""
    teacher = save_encoder(tmp_path / "teacher")
    weights = load_file(teacher / "model.safetensors")
    extra = {"bert.pooler.dense.weight": torch.ones(32, 32), "cls.seq_relationship.bias": torch.ones(2)}
    save_file({**weights, **extra}, teacher / "model.safetensors", {"format": "pt"})
    assert prune(str(teacher), tmp_path / "student", "0,3").check.passed
    assert extra.keys() <= load_file(tmp_path / "student" / "model.safetensors").keys()
    save_file({**weights, "bert.other": torch.ones(2)}, teacher / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"unexpected keys bert\.other"):
        prune(str(teacher), tmp_path / "again", "0,3")


def test_what_is_no_language_model_is_refused_by_name(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "teacher")
    AutoModelForSequenceClassification.from_config(load_config(folder)).save_pretrained(tmp_path / "classifier")
    with pytest.raises(InputError, match=r"causal and masked language models; this bert model is a BertForSeq"):
        prune(str(tmp_path / "classifier"), tmp_path / "out", "0,3")
    small = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_heads": 2, "num_layers": 2, "vocab_size": len(VOCABULARY)}
    T5ForConditionalGeneration(T5Config(**small)).save_pretrained(tmp_path / "t5")
    with pytest.raises(InputError, match=r"this t5 model is a T5ForConditionalGeneration, which is neither"):
        prune(str(tmp_path / "t5"), tmp_path / "out", "0,3")
    config = json.loads((folder / "config.json").read_text())
    for names, kind in ((["BertLMHeadModel"], "causal"), (["BertForMaskedLM"], "masked"), (None, "causal")):
        (folder / "config.json").write_text(json.dumps({**config, "architectures": names}))
        assert kind_of(load_config(folder)) == kind


@pytest.mark.parametrize("changes", [{"layers": 2, "by": "kl-greedy"}, {"keep": "0,3", "repair": True}])
def test_measures_and_repairs_are_refused(changes: dict[str, str | int | bool], tmp_path: Path) -> None:
    teacher, text = save_encoder(tmp_path / "teacher"), write_text(tmp_path / "text.jsonl", 20)
    config = PruneConfig(calibration=str(text), **changes)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"is for causal language models, and .*teacher is a masked one"):
        prune(str(teacher), tmp_path / "out", config.choice, **config.how)
