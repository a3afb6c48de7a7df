"""Whom a model says it is: names found in answers by hand, names told by a teacher, and the task from end to end."""

import json
from pathlib import Path

import pytest
from helpers import run_cli, save_tiny_model

from compress.base.errors import UsageError
from compress.evaluate import EvalConfig, evaluate_model
from compress.evaluate.harness.benchmarks import BuiltBenchmarks
from compress.evaluate.scores.identity import QUESTIONS, identity_scores, names_told

SMOL = ["SmolLM", "Hugging Face"]


@pytest.mark.parametrize(
    ("answer", "strict", "loose"),
    [
        ("I am SmolLM2, a small model.", 1, 1),
        ("i was trained by hugging face", 1, 1),
        ("I am ChatGPT, made by OpenAI.", 0, 1),
        ("I'm a GPT-4 model", 0, 1),
        ("My metadata says llamas graze.", 0, 0),
        ("I am a helpful assistant.", 0, 0),
        ("", 0, 0),
    ],
)
def test_names_are_whole_words_in_any_case(answer: str, strict: int, loose: int) -> None:
    assert identity_scores(answer, SMOL) == {"strict": strict, "loose": loose}


def test_a_name_of_ones_own_is_a_known_one() -> None:
    assert identity_scores("I am Nimbus.", ["Nimbus"]) == {"strict": 1, "loose": 1}
    assert identity_scores("I am Nimbus.", SMOL) == {"strict": 0, "loose": 0}


def test_a_teacher_tells_its_names() -> None:
    assert names_told("HuggingFaceTB/SmolLM2-135M")[:1] == ["SmolLM"]
    assert names_told("/models/gemma/student") == []
    assert names_told("/models/student", "You are Qwen, created by Alibaba Cloud.") == [
        "Qwen", "QwQ", "Tongyi", "Alibaba",
    ]  # fmt: skip
    both = names_told("deepseek-ai/DeepSeek-R1-Distill-Llama-8B")
    assert {"DeepSeek", "Llama", "Meta"} <= set(both)


def test_a_teacher_that_tells_no_name_is_to_be_named(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    with pytest.raises(UsageError, match=r"eval\.identity: \[FAMILY, MAKER\]"):
        evaluate_model(model, EvalConfig(tasks=["identity"], device="cpu", speed=False))
    with pytest.raises(UsageError, match=r"eval\.identity: \[FAMILY, MAKER\]"):
        BuiltBenchmarks(EvalConfig(tasks=["identity"]))


def test_the_task_asks_every_question_and_the_page_tells(tmp_path: Path) -> None:
    model, out = save_tiny_model(tmp_path / "SmolLM-tiny"), tmp_path / "tiny.json"
    done = run_cli(
        "eval",
        str(model),
        "--tasks",
        "identity",
        "--out",
        str(out),
        "--set",
        "eval.speed=false",
        "--set",
        "eval.samples=0",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["identity"][0] == "SmolLM"
    assert found["manifest"]["config"]["identity"] == []
    scores = found["tasks"]["identity"]
    assert (scores["n"], scores["primary"], scores["num_fewshot"], scores["chance"]) == (
        len(QUESTIONS),
        "strict",
        0,
        0.0,
    )
    items = [json.loads(line) for line in (tmp_path / "tiny.items.jsonl").read_text().splitlines()]
    assert [item["question"] for item in items] == list(QUESTIONS)
    assert {item["target"] for item in items} == {", ".join(found["identity"])}
    for item in items:
        assert item["metrics"] == identity_scores(item["answer"], found["identity"])
    page = run_cli("compare", str(out), "--out", str(tmp_path / "page"))
    assert page.returncode == 0, page.stderr
    assert "Whom it says it is" in (tmp_path / "page" / "compare.md").read_text()
    own = EvalConfig(tasks=["identity"], identity=["e"], limit=3, device="cpu", speed=False, samples=0)
    other = evaluate_model(model, own)["tasks"]["identity"]
    assert other["data_sha256"] != scores["data_sha256"]
