"""A small benchmark on disk for the tests: data in the hub's layout, and lm-eval task YAMLs that use it."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from helpers import save_tiny_model

WORDS = ["river", "stone", "lamp", "wheel", "été", "cloud", "iron", "glass", "bread", "night"]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model, the datasets root, the task folder, and a folder to write into."""
    folder = tmp_path_factory.mktemp("quiz")
    root, tasks = write_quiz(folder)
    return {"model": save_tiny_model(folder / "model"), "root": root, "tasks": tasks, "folder": folder}


@pytest.fixture(scope="session")
def teacher(world: dict[str, Path]) -> Path:
    """Another model like that of `world`."""
    return save_tiny_model(world["folder"] / "teacher", seed=7)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test of this folder may reach the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def write_quiz(folder: Path, items: int = 24) -> tuple[Path, Path]:
    """Write (datasets root, task folder): `acme/quiz` with 2 to 5 options, its `test` split alone; `acme/spans`."""
    rng = random.Random(0)
    root, tasks = folder / "root", folder / "tasks"
    rows: list[dict[str, Any]] = []
    for i in range(items):
        options = rng.sample(WORDS, 2 + i % 4)
        options[0] += " and more" * (i % 3)
        rows.append(
            {"question": f"{i}: {' '.join(rng.choices(WORDS, k=8))}?", "options": options, "gold": i % len(options)}
        )
    _write_rows(root / "acme" / "quiz" / "test.jsonl", rows)
    spans = [{"text": f"{r['question']} It is", "value": " ".join(r["options"][:1])} for r in rows]
    _write_rows(root / "acme" / "spans" / "validation.jsonl", spans)
    tasks.mkdir()
    for name, text in TASKS.items():
        (tasks / name).write_text(text)
    return root, tasks


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


_QUIZ = """
dataset_path: acme/quiz
output_type: multiple_choice
training_split: train
validation_split: validation
test_split: test
doc_to_text: "{{question}}\\nAnswer:"
doc_to_target: gold
doc_to_choice: options
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
_SAMPLED = """
task: quiz_sampled
dataset_path: acme/spans
output_type: generate_until
validation_split: validation
doc_to_text: "{{text}}"
doc_to_target: "{{value}}"
generation_kwargs: {until: ["zz"], max_gen_toks: 3, do_sample: true, temperature: 1.0}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
_ROLLING = """
task: quiz_rolling
dataset_path: acme/quiz
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
_SHUFFLED = """
dataset_path: acme/quiz
output_type: multiple_choice
test_split: test
process_docs: !function quiz_class.shuffled
doc_to_text: "{{question}}\\nAnswer:"
doc_to_target: gold
doc_to_choice: options
metric_list: [{metric: acc}]
"""
TASKS = {
    "quiz.yaml": "tag: quiz_tag\ntask: quiz" + _QUIZ,
    "quiz_again.yaml": "tag: quiz_tag\ntask: quiz_again" + _QUIZ.replace("Answer:", "The answer:"),
    "quiz_mass.yaml": "task: quiz_mass" + _QUIZ + "process_results: !function quiz_class.mass\n",
    "quiz_sampled.yaml": _SAMPLED,
    "quiz_rolling.yaml": _ROLLING,
    "quiz_shuffled.yaml": "task: quiz_shuffled" + _SHUFFLED,
    "quiz_mcc.yaml": "task: quiz_mcc" + _QUIZ.partition("metric_list")[0] + "metric_list: [{metric: mcc}]\n",
    "quiz_code.yaml": _SAMPLED.replace("quiz_sampled", "quiz_code") + "unsafe_code: true\n",
    "quiz_pictures.yaml": _SAMPLED.replace("quiz_sampled", "quiz_pictures") + "doc_to_image: text\n",
    "quizzes.yaml": "group: quizzes\ntask: [quiz, quiz_again]\n",
    "quiz_class.yaml": "task: quiz_class\nclass: !function quiz_class.Quiz\n",
    "quiz_lost.yaml": "task: quiz_lost" + _QUIZ.replace("acme/quiz", "acme/lost"),
    "quiz_split.yaml": "task: quiz_split" + _QUIZ.replace("test_split: test", "test_split: exam"),
    "quiz_class.py": '''
import random

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask


def mass(doc, results):
    """Probability mass of the right option, as TruthfulQA's mc2."""
    p = np.exp(np.array([r[0] for r in results]) - max(r[0] for r in results))
    return {"acc": float(p[doc["gold"]] / p.sum())}


def shuffled(docs):
    """Options in an order drawn from Python's own random numbers, as gpqa's."""

    def shuffle(doc):
        order = random.sample(range(len(doc["options"])), len(doc["options"]))
        return {"options": [doc["options"][i] for i in order], "gold": order.index(doc["gold"])}

    return docs.map(shuffle)


class Quiz(ConfigurableTask):
    """Hard-wires its data set and generates, as lm-eval's squad_completion does."""

    VERSION = 1
    DATASET_PATH = "acme/spans"
    DATASET_NAME = "default"

    def __init__(self, **kwargs):
        super().__init__(config={"metadata": {"version": 1}})

    def has_training_docs(self): return False
    def has_validation_docs(self): return True
    def has_test_docs(self): return False
    def validation_docs(self): return self.dataset["validation"]
    def doc_to_text(self, doc): return doc["text"]
    def doc_to_target(self, doc): return doc["value"]

    def construct_requests(self, doc, ctx, **kwargs):
        for key in ("apply_chat_template", "chat_template"):
            kwargs.pop(key, None)
        settings = {"until": ["\\n"], "max_gen_toks": 4, "do_sample": False}
        return [Instance(request_type="generate_until", doc=doc, arguments=(ctx, settings), idx=0, **kwargs)]

    def process_results(self, doc, results): return {"contains": float("e" in results[0])}
    def aggregation(self): return {"contains": np.mean}
    def higher_is_better(self): return {"contains": True}
''',
}
