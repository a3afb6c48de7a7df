"""Suites and shots: what `--tasks` means, in flags and in recipes."""

import json
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest

from compress.base.config import build, dump_yaml
from compress.base.documents import parse_yaml
from compress.base.errors import InputError, UsageError
from compress.evaluate import EvalConfig, evaluate_model
from compress.evaluate.harness import names
from compress.evaluate.harness.catalog import build_tasks
from compress.evaluate.harness.local_data import local_datasets
from compress.evaluate.harness.names import find_tasks, leaf_tasks
from compress.evaluate.presets import PRESETS, split_shots

FOLDERS = ("mmlu/default", "hellaswag", "agieval", "arc", "openbookqa", "truthfulqa", "commonsense_qa")


def test_a_preset_is_its_tasks_and_a_name_carries_its_shots() -> None:
    tasks = EvalConfig(tasks=["torchtune", "hellaswag@0", "boolq", "mmlu@5"]).tasks
    assert tasks == ["truthfulqa_mc2@0", "hellaswag@0", "commonsense_qa@0", "boolq", "mmlu@5"]
    document = parse_yaml("tasks: [paper, boolq@3]", "eval.yaml")
    config = build(EvalConfig, document)
    assert config.tasks == [*PRESETS["paper"], "boolq@3"]
    assert build(EvalConfig, parse_yaml(dump_yaml(config), "again")) == config
    assert split_shots("a@b@12") == ("a@b", 12)


@pytest.mark.parametrize(
    ("name", "said"), [("mmlu@", "NAME@SHOTS"), ("@5", "NAME@SHOTS"), ("paper@3", "arc_challenge@25")]
)
def test_a_name_that_says_no_shots_is_refused(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        build(EvalConfig, parse_yaml(f"tasks: ['{name}']", "eval.yaml"))
    assert name in str(caught.value)


@pytest.fixture
def few_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders of lm-eval's tasks that presets need, instead of all: the full index takes seconds."""
    folders = [Path(lm_eval.tasks.__file__).parent / name for name in FOLDERS]

    def manager(own: tuple[str, ...], include_defaults: bool) -> Any:
        places = [*own, *map(str, folders)] if include_defaults else list(own)
        return lm_eval.tasks.TaskManager(include_path=places, include_defaults=False)

    monkeypatch.setattr(names, "_manager", manager)


@pytest.mark.usefixtures("few_folders")
def test_every_task_of_the_presets_is_lm_evals_or_ours_and_its_data_has_a_place_under_a_root() -> None:
    """The hub ids that a preset needs, as `--datasets-root` looks for them."""
    names = [split_shots(task)[0] for preset in PRESETS.values() for task in preset]
    index = find_tasks(names, None).task_index
    assert {name: {data for _, data in leaf_tasks(index, name)} for name in dict.fromkeys(names)} == {
        "mmlu": {"cais/mmlu"},
        "hellaswag": {"Rowan/hellaswag"},
        "agieval_en": {
            f"hails/agieval-{part}"
            for part in ("aqua-rat", "gaokao-english", "logiqa-en", "lsat-ar", "lsat-lr", "lsat-rc", "math",
                         "sat-en-without-passage", "sat-en", "sat-math")
        },
        "squad_completion_verbatim": {"rajpurkar/squad"},
        "arc_challenge": {"allenai/ai2_arc"},
        "arc_easy": {"allenai/ai2_arc"},
        "openbookqa": {"allenai/openbookqa"},
        "truthfulqa_mc2": {"truthfulqa/truthful_qa"},
        "commonsense_qa": {"tau/commonsense_qa"},
    }  # fmt: skip
    assert len(list(leaf_tasks(index, "mmlu"))) == 57


ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "hellaswag": (
        "Rowan/hellaswag/validation.jsonl",
        {
            "ind": 1, "activity_label": "Cooking", "ctx_a": "A man stirs.", "ctx_b": "he", "ctx": "A man stirs. he",
            "endings": ["eats.", "flies.", "sings to it.", "is a pot."], "source_id": "a", "split": "val",
            "split_type": "zeroshot", "label": "0",
        },
    ),
    "commonsense_qa": (
        "tau/commonsense_qa/validation.jsonl",
        {
            "id": "1", "question": "Where is a pan?", "question_concept": "pan", "answerKey": "B",
            "choices": {"label": list("ABCDE"), "text": ["sea", "kitchen", "sky", "ear", "moon"]},
        },
    ),
    "truthfulqa_mc2": (
        "truthfulqa/truthful_qa/multiple_choice/validation.jsonl",
        {
            "question": "Is water wet?", "mc1_targets": {"choices": ["Yes", "No"], "labels": [1, 0]},
            "mc2_targets": {"choices": ["Yes", "It is", "No"], "labels": [1, 1, 0]},
        },
    ),
}  # fmt: skip


@pytest.mark.usefixtures("few_folders")
def test_torchtunes_three_run_from_a_folder_in_the_hubs_layout(world: dict[str, Path], tmp_path: Path) -> None:
    for place, row in ROWS.values():
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    parts = "configs: [{config_name: multiple_choice, data_files: [{split: validation, path: multiple_choice/*}]}]"
    (tmp_path / "truthfulqa/truthful_qa/README.md").write_text(f"---\n{parts}\n---\n")
    config = EvalConfig(tasks=["torchtune"], datasets_root=str(tmp_path), speed=False, device="cpu", batch_tokens=4096)
    out = tmp_path / "m.json"
    scores = evaluate_model(world["model"], config, out=out)["tasks"]
    assert {name: (score["n"], score["num_fewshot"]) for name, score in scores.items()} == dict.fromkeys(ROWS, (2, 0))
    assert scores["hellaswag"]["chance"] == pytest.approx(1 / 4)
    assert scores["commonsense_qa"]["chance"] == pytest.approx(1 / 5)
    assert scores["truthfulqa_mc2"]["chance"] == pytest.approx(2 / 3)
    items = [json.loads(line) for line in (tmp_path / "m.items.jsonl").read_text().splitlines()]
    by_task = {item["task"]: item for item in items}
    assert by_task["commonsense_qa"]["gold"] == [1]
    assert by_task["truthfulqa_mc2"]["gold"] is None
    assert by_task["truthfulqa_mc2"]["options"] == ["Yes", "It is", "No"]


def quiz(world: dict[str, Path], *tasks: str, **options: Any) -> EvalConfig:
    return EvalConfig(tasks=list(tasks), datasets_root=str(world["root"]), task_folder=str(world["tasks"]), **options)


def shots(config: EvalConfig) -> dict[str, int]:
    with local_datasets(Path(str(config.datasets_root))):
        return {name: task.config.num_fewshot for name, task in build_tasks(config)["tasks"].items()}


def test_shots_of_a_name_go_before_the_option_and_reach_a_groups_members(world: dict[str, Path]) -> None:
    test = world["root"] / "acme" / "quiz" / "test.jsonl"
    train = test.with_name("train.jsonl")
    train.write_text(test.read_text())
    try:
        assert shots(quiz(world, "quizzes@2", "quiz_class", num_fewshot=1)) == {
            "quiz": 2, "quiz_again": 2, "quiz_class": 1,
        }  # fmt: skip
        assert shots(quiz(world, "quizzes@2", "quiz")) == {"quiz": 2, "quiz_again": 2}
        with pytest.raises(UsageError, match=r"quiz is asked for with 2 and with 0 shots"):
            shots(quiz(world, "quizzes@2", "quiz@0"))
    finally:
        train.unlink()
    with pytest.raises(InputError, match="quiz at 2 shots"):
        shots(quiz(world, "quiz@2"))


def test_shots_for_a_task_that_is_defined_without_are_refused(world: dict[str, Path], tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    text = (world["tasks"] / "quiz.yaml").read_text()
    (tasks / "fixed.yaml").write_text(
        text.replace("task: quiz", "task: fixed").replace("tag: quiz_tag\n", "") + "num_fewshot: 0\n"
    )
    config = EvalConfig(tasks=["fixed@2"], datasets_root=str(world["root"]), task_folder=str(tasks))
    with pytest.raises(UsageError, match="write fixed@0"):
        shots(config)
    assert shots(
        EvalConfig(tasks=["fixed"], num_fewshot=4, datasets_root=str(world["root"]), task_folder=str(tasks))
    ) == {"fixed": 0}
