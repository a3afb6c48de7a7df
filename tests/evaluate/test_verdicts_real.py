"""A real model with a head that always prefers A, evaluated and judged: what a user sees of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from helpers import SHARED_DATA, save_tiny_model
from transformers import AutoModelForCausalLM

from compress.cli import cli
from compress.evaluate import EvalConfig, evaluate_model
from compress.report.compare import compare_models

ITEMS = 80
LETTERED = """
task: lettered
dataset_path: acme/lettered
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}\\nA. {{options[0]}}\\nB. {{options[1]}}\\nC. {{options[2]}}\\nD. {{options[3]}}\\nAnswer:"
doc_to_target: gold
doc_to_choice: ["A", "B", "C", "D"]
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def write_lettered(folder: Path) -> dict[str, str]:
    """A task of four lettered options, each right as often as the others; options of `EvalConfig` that find it."""
    rows = []
    for i in range(ITEMS):
        numbers = [3 * i % 7, 5 * i % 11, i % 13, i + 20]
        rows.append({"question": f"Which of these is item {i}?", "options": [str(n) for n in numbers], "gold": i % 4})
    data = folder / "root" / "acme" / "lettered" / "test.jsonl"
    data.parent.mkdir(parents=True)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tasks").mkdir()
    (folder / "tasks" / "lettered.yaml").write_text(LETTERED)
    return {"datasets_root": str(folder / "root"), "task_folder": str(folder / "tasks")}


def always_a(folder: Path, **overrides: Any) -> Path:
    """A Phi of random weights whose head is biased to the byte A."""
    save_tiny_model(folder, "phi", tie_word_embeddings=False, **overrides)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.bias[ord("A") - ord("!")] += 100.0
    model.save_pretrained(folder)
    return folder


def test_a_model_that_always_answers_a_is_told_in_words(tmp_path: Path) -> None:
    places = write_lettered(tmp_path)
    model = always_a(tmp_path / "always")
    arguments = ["eval", str(model), "--tasks", "lettered", "--datasets-root", places["datasets_root"]]
    arguments += ["--set", f"eval.task_folder={places['task_folder']}", "--set", "eval.speed=false"]
    done = CliRunner().invoke(cli, [*arguments, "--set", "eval.device=cpu", "--out", str(tmp_path / "m.json")])
    assert done.exit_code == 0, done.output
    scores = json.loads((tmp_path / "m.json").read_text())["tasks"]["lettered"]
    assert scores["acc"] == pytest.approx(0.25)
    assert scores["answers"]["chosen"] == [ITEMS, 0, 0, 0]
    assert scores["answers"]["gold"] == [ITEMS // 4] * 4
    (verdict,) = compare_models([str(tmp_path / "m.json")])["verdicts"]
    assert verdict["level"] == "alarm"
    assert verdict["text"].startswith("Always answers A (100% of items; A is right in 25%), so its score measures that")
    assert "at chance: cannot be told from guessing" in verdict["text"]
    assert "overconfident: 100% sure and right in 25%" in verdict["text"]
    assert "lettered, m: Always answers A" in " ".join(done.stdout.split())


def test_items_say_what_was_asked_answered_and_right(world: dict[str, Path], tmp_path: Path) -> None:
    places = {"datasets_root": str(world["root"]), "task_folder": str(world["tasks"])}
    config = EvalConfig(tasks=["quiz", "quiz_class"], speed=False, device="cpu", **places)
    evaluate_model(world["model"], config, out=tmp_path / "m.json")
    items = [json.loads(line) for line in (tmp_path / "m.items.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (world["root"] / "acme/quiz/test.jsonl").read_text().splitlines()]
    for item, row in zip([item for item in items if item["task"] == "quiz"], rows, strict=True):
        assert item["question"] == f"{row['question']}\nAnswer:"
        assert (item["options"], item["gold"]) == (row["options"], [row["gold"]])
        best = max(range(len(row["options"])), key=lambda i, item=item: item["log_likelihoods"][i])  # type: ignore[misc]
        assert item["choice"] == best
        assert item["metrics"]["acc"] == float(best == row["gold"])
    spans = [json.loads(line) for line in (world["root"] / "acme/spans/validation.jsonl").read_text().splitlines()]
    for item, row in zip([item for item in items if item["task"] == "quiz_class"], spans, strict=True):
        assert (item["question"], item["target"]) == (row["text"], row["value"])
        assert item["metrics"]["contains"] == float("e" in item["answer"])


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED_DATA / "hub").is_dir(), reason="needs benchmark data in ../shared/data/hub")
def test_on_real_questions_too(tmp_path: Path) -> None:
    model = always_a(tmp_path / "always", max_position_embeddings=8192)
    config = EvalConfig(
        tasks=["mmlu_anatomy", "mmlu_marketing"], datasets_root=str(SHARED_DATA / "hub"), speed=False, device="cpu"
    )
    evaluate_model(model, config, out=tmp_path / "m.json")
    for verdict in compare_models([str(tmp_path / "m.json")])["verdicts"]:
        assert verdict["level"] == "alarm"
        assert verdict["text"].startswith("Always answers A (100% of items")
