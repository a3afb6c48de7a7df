"""A student scored while it is trained: the training is the same, the scores are those of `compress eval`."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import warm
from fault_injection import Signal
from helpers import run_cli
from recipe_world import make_run_world, run_to

from compress.base.disk import read_json, read_rows, sha256_tree
from compress.report.judge.ability import falls, kept
from compress.verify import verify_run

LEAN = ("eval.speed=false", "eval.samples=0", "eval.responses=0", "distill.schedule=constant")
DURING = (*LEAN, "eval.during={tasks: [tiny_choice], items: 9, every: 4}")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def scored(world: Path) -> Path:
    return run_to(world / "scored", world / "recipe.yaml", *DURING)


def timeless(path: Path) -> list[dict[str, Any]]:
    left_out = ("tokens_per_s", "peak_gib", "mfu")
    return [{k: v for k, v in row.items() if k not in left_out} for row in read_rows(path)]


def test_scores_change_nothing_of_the_training(world: Path, scored: Path) -> None:
    plain = run_to(world / "plain", world / "recipe.yaml", *LEAN)
    assert sha256_tree(plain / "student", "*.safetensors") == sha256_tree(scored / "student", "*.safetensors")
    rows = timeless(scored / "train" / "metrics.jsonl")
    assert [row for row in rows if "score/tiny_choice" not in row] == timeless(plain / "train" / "metrics.jsonl")
    assert [row["step"] for row in rows if "score/tiny_choice" in row] == [0, 4, 8, 12, 16]
    assert {check.status for check in verify_run(scored)} <= {"ok", "not checked"}


EVALUATED = [("teacher", None, "teacher"), ("student", 0, "student-init"), ("student", 16, "student")]


@pytest.mark.parametrize(("of", "step", "name"), EVALUATED)
def test_the_scores_are_those_of_an_evaluation(scored: Path, of: str, step: int | None, name: str) -> None:
    (row,) = [r for r in read_rows(scored / "train" / "ability.jsonl") if (r["of"], r["step"]) == (of, step)]
    items = read_rows(scored / "eval" / f"{name}.items.jsonl")
    assert row["items"] == [item["metrics"]["acc"] for item in items]
    assert row["chance"] == pytest.approx(1 / 3)


def test_the_report_draws_them_beside_the_teacher(scored: Path) -> None:
    (entry,) = read_json(scored / "report.json")["abilities"]
    assert [point["tokens"] for point in entry["points"]] == [0, 2048, 4096, 6144, 8000]
    teacher = read_json(scored / "eval" / "teacher.json")["tasks"]["tiny_choice"]["acc"]
    assert entry["teacher"] == pytest.approx(teacher)
    assert "tiny_choice: acc on 9 items" in (scored / "report.html").read_text()


@pytest.mark.faults(1, 3)
@pytest.mark.parametrize("at", ["compress.base.disk:write_rows", "compress.distill.loop.checkpoint:save_file"])
def test_a_run_killed_between_scores_ends_with_the_same_bytes(
    world: Path, scored: Path, tmp_path: Path, at: str
) -> None:
    command = ["run", str(world / "recipe.yaml"), "--out", str(tmp_path / "run"), *(f"--set={c}" for c in DURING)]
    where = "compress.distill.loop.ability:write_rows" if at.endswith("write_rows") else at
    died = warm().run([Signal(at=(where,), call=4)], *command)
    assert died.returncode == -signal.SIGKILL, died.stderr[-2000:]
    assert run_cli(*command).returncode == 0
    assert sha256_tree(tmp_path / "run" / "student", "*.safetensors") == sha256_tree(
        scored / "student", "*.safetensors"
    )
    for name in ("metrics.jsonl", "ability.jsonl"):
        assert timeless(tmp_path / "run" / "train" / name) == timeless(scored / "train" / name)


def test_two_processes_share_the_scoring(world: Path, scored: Path, tmp_path: Path) -> None:
    """The teacher's scores are the same, those of the student up to what rounding does to its training."""
    done = warm().launch(
        2, "run", str(world / "recipe.yaml"), "--out", str(tmp_path / "run"), *(f"--set={c}" for c in DURING)
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (read_rows(run / "train" / "ability.jsonl") for run in (scored, tmp_path / "run"))
    assert [(row["of"], row["step"], len(row["items"])) for row in two] == [
        (row["of"], row["step"], len(row["items"])) for row in one
    ]
    assert two[0] == one[0]


def at(step: int, items: list[float], *, of: str = "student", chance: float | None = 0.25) -> dict[str, Any]:
    return {"of": of, "step": step, "tokens": step, "task": "t", "metric": "acc", "chance": chance, "items": items}


def test_what_is_kept_is_the_ratio_above_chance() -> None:
    teacher = at(0, [1.0] * 80 + [0.0] * 20, of="teacher")
    student = at(5, [1.0] * 58 + [0.0] * 42)
    found = kept([teacher, student, at(6, [0.0] * 100)], 5)
    assert found.value == pytest.approx((0.58 - 0.25) / (0.80 - 0.25))
    assert found.ci95 is not None
    assert found.ci95[0] < found.value < found.ci95[1]
    assert kept([teacher, at(5, [1.0] * 58 + [0.0] * 42, chance=None)], 5).value is None


def test_an_ability_that_falls_while_kl_falls_is_told_and_noise_is_not() -> None:
    heldout = [{"step": 0, "heldout_kl": 1.0}, {"step": 10, "heldout_kl": 0.5}]
    worse = [at(0, [1.0] * 60 + [0.0] * 40), at(10, [1.0] * 30 + [0.0] * 70)]
    (fall,) = falls(worse, heldout)
    assert (fall.task, fall.best, fall.at_step, fall.now) == ("t", 0.6, 0, 0.3)
    assert falls(worse, [{"step": 0, "heldout_kl": 0.5}, {"step": 10, "heldout_kl": 1.0}]) == []
    rng = np.random.default_rng(0)
    told = 0
    for _ in range(300):  # eight scores of one and the same ability on 200 items, of which a tenth changes hands
        base = rng.random(200) < 0.5
        items = [np.where(rng.random(200) < 0.1, rng.random(200) < 0.5, base).astype(float) for _ in range(8)]
        times = [at(step, each.tolist()) for step, each in enumerate(items)]
        told += bool(falls(times, [{"step": step, "heldout_kl": 1.0 - step / 10} for step in range(8)]))
    assert told <= 15
