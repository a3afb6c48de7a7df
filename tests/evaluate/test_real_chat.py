"""Real chat models (see real_teachers.py) asked in their templates: numbers and answers are those of lm-eval's run."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from chat_templates import GEMMA3
from evaluation_world import HUB, ON_REAL_DATA
from real_teachers import real_teacher

from compress.base.disk import read_rows
from compress.evaluate import EvalConfig, evaluate_model
from compress.evaluate.harness.local_data import local_datasets
from compress.evaluate.harness.names import find_tasks

LIMIT = 10
pytestmark = ON_REAL_DATA


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """SmolLM2-Instruct with its own template."""
    return real_teacher("smollm2")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pretrained Gemma with the template of the one that was tuned on chats."""
    folder = tmp_path_factory.mktemp("chat") / "gemma"
    shutil.copytree(real_teacher("gemma"), folder)
    (folder / "chat_template.jinja").write_text(GEMMA3)
    return folder


def lm_eval_run(model: Path, task: str, **how: Any) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    with local_datasets(HUB):
        result = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(model), "dtype": "float32"},
            tasks=[task],
            device="cpu",
            batch_size=1,
            limit=LIMIT,
            bootstrap_iters=0,
            task_manager=find_tasks([task], None),
            apply_chat_template=True,
            **how,
        )
    assert result is not None
    return dict(result)


@pytest.mark.parametrize(("task", "shots"), [("openbookqa", 0), ("mmlu_anatomy", 2), ("squad_completion_verbatim", 0)])
@pytest.mark.parametrize(
    ("name", "system", "multiturn"), [("smollm2", None, True), ("gemma", "Answer briefly.", False)]
)
def test_chats_score_as_lm_eval_scores_them(
    name: str, system: str | None, multiturn: bool, task: str, shots: int, tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    model: Path = request.getfixturevalue(name)
    how: dict[str, Any] = {"num_fewshot": shots, "fewshot_as_multiturn": multiturn}
    theirs = lm_eval_run(model, task, system_instruction=system, **how)
    places: dict[str, Any] = {"datasets_root": str(HUB), "limit": LIMIT, "speed": False, "device": "cpu"}
    config = EvalConfig(tasks=[task], chat_template=True, system=system, **how, **places)
    ours = evaluate_model(model, config, out=tmp_path / "e.json")["tasks"][task]
    assert ours["num_fewshot"] == shots
    for sample, item in zip(theirs["samples"][task], read_rows(tmp_path / "e.items.jsonl"), strict=True):
        assert item["doc_sha256"] == sample["doc_hash"]
        if "answer" in item:
            assert item["answer"] == sample["filtered_resps"][0]
        else:
            expected = [response[0] for response in sample["filtered_resps"]]
            assert item["log_likelihoods"] == pytest.approx(expected, abs=2e-3)
    for key, value in theirs["results"][task].items():
        metric, comma, _ = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            assert ours[metric] == pytest.approx(value, abs=1e-9), metric
