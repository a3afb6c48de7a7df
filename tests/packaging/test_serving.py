"""A student is served by what serves any checkpoint: transformers' pipeline, and vLLM where it is."""

import importlib.util
from pathlib import Path

import pytest
import torch
from helpers import save_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from compress.prune import prune

PROMPT, NEW_TOKENS = "The river", 12


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving")
    prune(save_tiny_model(folder / "teacher"), folder / "student", "0,2,3")
    return folder / "student"


@pytest.fixture(scope="module")
def greedy(student: Path) -> list[int]:
    """The student's likeliest tokens, each from a pass over all before it."""
    model = AutoModelForCausalLM.from_pretrained(student)
    assert len(model.model.layers) == 3
    ids = AutoTokenizer.from_pretrained(student)(PROMPT)["input_ids"]
    start = len(ids)
    for _ in range(NEW_TOKENS):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[start:]


def test_a_pipeline_writes_what_the_student_says(student: Path, greedy: list[int]) -> None:
    write = pipeline("text-generation", model=str(student), device="cpu")
    found = write(PROMPT, max_new_tokens=NEW_TOKENS, do_sample=False, return_tensors=True)[0]["generated_token_ids"]
    assert found[-NEW_TOKENS:] == greedy


@pytest.mark.gpu
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="vLLM is asked on a CUDA device")
def test_vllm_writes_what_the_student_says(student: Path, greedy: list[int]) -> None:
    from vllm import LLM, SamplingParams

    engine = LLM(str(student), dtype="float32", enforce_eager=True, gpu_memory_utilization=0.2, max_model_len=64)
    (found,) = engine.generate(PROMPT, SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS), use_tqdm=False)
    assert list(found.outputs[0].token_ids) == greedy
