"""lm-eval's own tasks on real data, scored by us and by lm-eval's own hf backend: the numbers must be the same."""

import contextlib
import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from evaluation_world import HUB, ON_REAL_DATA
from helpers import save_tiny_model

from compress.base.disk import read_rows
from compress.base.errors import InputError
from compress.evaluate import EvalConfig, evaluate_model

LIMIT = 12
pytestmark = ON_REAL_DATA


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("real") / "model", max_position_embeddings=8192)


@functools.cache
def index() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def harness(model: Path, tasks: list[str], shots: int | None, limit: int = LIMIT) -> dict[str, Any]:
    """lm-eval by itself: its hf backend, its tasks, its loading of the folders given by path."""
    from lm_eval import simple_evaluate

    result = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), "dtype": "float32"},
        tasks=[load(task) for task in tasks],
        num_fewshot=shots,
        device="cpu",
        batch_size=1,
        limit=limit,
        bootstrap_iters=100,
        task_manager=index(),
    )
    assert result is not None
    return dict(result)


def load(task: str) -> Any:
    """lm-eval's task with its data taken from the hub folder."""
    entry = index().task_index[task].cfg
    overrides: dict[str, Any] = {"task": task, "dataset_path": str(HUB / entry["dataset_path"])}
    if not any((HUB / entry["dataset_path"]).rglob("train-*")):
        overrides |= {"training_split": None, "validation_split": None}
    return index()._factory._build_task(index().task_index[task], overrides)


@pytest.mark.parametrize(
    ("task", "shots"),
    [
        ("openbookqa", None),
        ("arc_challenge", None),
        ("agieval_lsat_lr", None),
        ("mmlu_anatomy", 5),
        ("mmlu_us_foreign_policy", None),
    ],
)
def test_scores_and_items_are_those_of_lm_eval(model: Path, tmp_path: Path, task: str, shots: int | None) -> None:
    reference = harness(model, [task], shots)
    config = EvalConfig(
        tasks=[task],
        datasets_root=str(HUB),
        num_fewshot=shots,
        limit=LIMIT,
        speed=False,
        device="cpu",
        batch_tokens=4096,
    )
    ours = evaluate_model(model, config, out=tmp_path / "o.json")["tasks"][task]
    items = read_rows(tmp_path / "o.items.jsonl")
    assert ours["n"] == LIMIT
    assert ours["num_fewshot"] == (shots or 0)
    for key, expected in reference["results"][task].items():
        metric, comma, _ = key.partition(",")
        if comma:
            assert ours[metric] == pytest.approx(expected, abs=1e-9)
    for sample, item in zip(reference["samples"][task], items, strict=True):
        assert item["doc_sha256"] == sample["doc_hash"]
        assert item["metrics"]["acc"] == sample["acc"]


def test_one_command_scores_four_benchmarks_and_the_whole_of_mmlu_as_lm_eval_does(model: Path, tmp_path: Path) -> None:
    names, limit = "openbookqa,arc_challenge,agieval_lsat_lr,mmlu", 3
    command = [sys.executable, "-m", "compress.cli", "eval", str(model), "--datasets-root", str(HUB), "--tasks", names]
    command += ["--limit", str(limit), "--out", str(tmp_path / "o.json"), "--set", "eval.speed=false"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    scores = json.loads((tmp_path / "o.json").read_text())["tasks"]
    subjects = scores["mmlu"]["members"]
    assert len(subjects) == 57
    tasks = [*names.split(",")[:3], *subjects]
    reference = harness(model, tasks, None, limit)["results"]
    for task in tasks:
        assert scores[task]["n"] == limit
        for key, expected in reference[task].items():
            metric, comma, _ = key.partition(",")
            if comma:
                assert scores[task][metric] == pytest.approx(expected, abs=1e-9), (task, metric)
    right = sum(round(reference[subject]["acc,none"] * limit) for subject in subjects)
    assert scores["mmlu"]["acc"] == pytest.approx(right / (57 * limit))


def test_mmlu_is_a_group_with_micro_and_macro_averages(model: Path) -> None:
    config = EvalConfig(tasks=["mmlu_stem"], datasets_root=str(HUB), limit=2, speed=False, device="cpu")
    scores = evaluate_model(model, config)["tasks"]
    group = scores["mmlu_stem"]
    members = [scores[name] for name in group["members"]]
    assert len(members) == 19
    assert group["n"] == sum(m["n"] for m in members) == 38
    assert group["chance"] == pytest.approx(0.25)
    assert group["acc_macro"] == pytest.approx(sum(m["acc"] for m in members) / 19)
    for member in members:
        assert member["acc"] == member["acc_norm"] == member["acc_bytes"]


def test_squad_tasks_ours_and_lm_evals(model: Path, tmp_path: Path) -> None:
    spans = tmp_path / "hazyresearch" / "based-squad"
    spans.mkdir(parents=True)
    rows = [{"text": f"Paris is in France. Lyon, no. {i}, is in ", "value": " France "} for i in range(3)]
    (spans / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options: dict[str, Any] = {"limit": 3, "speed": False, "device": "cpu"}
    theirs = evaluate_model(model, EvalConfig(tasks=["squad_completion"], datasets_root=str(tmp_path), **options))
    assert theirs["tasks"]["squad_completion"]["primary"] == "contains"
    ours = evaluate_model(model, EvalConfig(tasks=["squad_completion_verbatim"], datasets_root=str(HUB), **options))
    assert {"completion", "em", "f1", "contains"} < set(ours["tasks"]["squad_completion_verbatim"])
    assert ours["tasks"]["squad_completion_verbatim"]["n"] == 3


def test_absent_data_and_absent_few_shot_examples_are_explained(model: Path) -> None:
    with pytest.raises(InputError, match=r"agieval_aqua_rat .*hf download hails/agieval-aqua-rat .*agieval-math"):
        evaluate_model(model, EvalConfig(tasks=["agieval_en"], datasets_root=str(HUB), speed=False, device="cpu"))
    config = EvalConfig(tasks=["arc_challenge"], datasets_root=str(HUB), num_fewshot=25, speed=False, device="cpu")
    with pytest.raises(InputError, match=r"25 shots .*'train' of allenai/ai2_arc"):
        evaluate_model(model, config)


def test_a_task_found_without_the_whole_index_is_the_one_that_the_whole_index_has() -> None:
    """Every task and group that the folders called as it begins can serve; it needs no data."""
    from compress.evaluate.harness.catalog import (
        _LM_EVAL,
        _OWN_TASKS,
        _names_written,
        find_tasks,
        leaf_tasks,
        nearby_folders,
    )

    whole = index().task_index
    assert whole.keys() <= _names_written((str(_LM_EVAL), str(_OWN_TASKS))).words
    compared = 0
    for name in ["mmlu", "mmlu_anatomy", "hellaswag", "agieval_en", "arc_challenge", "openbookqa", "commonsense_qa"]:
        assert len(find_tasks([name], None).task_index) < len(whole) / 10
    folders: dict[tuple[str, ...], list[str]] = {}
    for name, entry in whole.items():
        if entry.kind.name != "TAG" and nearby_folders([name]):
            folders.setdefault(nearby_folders([name]), []).append(name)
    for names in folders.values():
        near = find_tasks(names[:1], None).task_index
        for name in set(names) & near.keys():
            with contextlib.suppress(KeyError):
                assert set(leaf_tasks(near, name)) == set(leaf_tasks(whole, name)), name
                assert near[name].yaml_path == whole[name].yaml_path
                compared += 1
    assert compared > 5000
