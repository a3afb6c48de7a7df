"""The arithmetic of benchmarks/optimizers.py, and that the whole study runs and goes on where it was."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from helpers import ROOT, SHARED_DATA

SCRIPT = ROOT / "benchmarks" / "optimizers.py"


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_of_optimizers", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_tokens_to_a_target_lie_on_lines_in_logarithms(study: ModuleType) -> None:
    """KL = 1 / tokens: the KL 1 / x is reached at x tokens."""
    curve = [(100, 1 / 100), (200, 1 / 200), (800, 1 / 800)]
    for tokens in (100, 120, 200, 400, 800):
        assert study.tokens_to_reach(1 / tokens, curve) == pytest.approx(tokens)
    assert study.tokens_to_reach(1.0, curve) == 100
    assert study.tokens_to_reach(1 / 801, curve) == math.inf


@pytest.mark.parametrize(
    ("best", "found"), [(4.0, 4.0), (3.5, 4.0), (20.0, 16.0), (0.9, 1.0), (1e3, 64.0), (0.01, 0.25)]
)
def test_the_learning_rate_is_followed_to_its_best(study: ModuleType, best: float, found: float) -> None:
    asked: list[float] = []

    def kl_at(lr: float) -> float:
        asked.append(lr)
        return abs(math.log(lr / best))

    assert study.best_lr(kl_at, first=4.0, bounds=(0.25, 64.0)) == found
    assert len(asked) == len(set(asked))
    assert all(0.25 <= lr <= 64.0 for lr in asked)


def test_the_table_pairs_seeds_and_says_what_was_not_reached(study: ModuleType) -> None:
    def record(optimizer: str, curves: dict[int, list[tuple[int, float]]]) -> dict[str, object]:
        return {"optimizer": optimizer, "schedule": "cosine", "lr": 0.004, "curves": curves, "tokens_per_s": 1234.5}

    slow = {0: [(1000, 0.4), (2000, 0.2)], 1: [(1000, 0.8), (2000, 0.4)], 2: [(1000, 0.4), (2000, 0.2)]}
    fast = {0: [(1000, 0.3), (2000, 0.1)], 1: [(1000, 0.4), (2000, 0.3)], 2: [(1000, 0.4), (2000, 0.3)]}
    records = [record("adamw", slow), record("muon", fast)]
    lines = study.table(records, (1000, 2000)).splitlines()
    assert "| 2,000 (2,000 to 2,000) | 0.2000 (0.2000 to 0.4000) | 1,234 |" in lines[2]
    middle = round(1000 * 2 ** (math.log(0.3 / 0.2) / math.log(3)))
    assert f"| {middle:,} (<= 1,000 to > 2,000) | 0.3000 (0.1000 to 0.3000) |" in lines[3]
    assert records[1]["tokens_to_target"] == [pytest.approx(middle, abs=1), 1000, None]


@pytest.mark.slow
def test_the_study_runs_and_finds_its_runs_done_the_second_time(tmp_path: Path) -> None:
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the corpus in {SHARED_DATA}")
    command = [sys.executable, str(SCRIPT), "--smoke", "--work", str(tmp_path / "study")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}

    def stdout() -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    first = stdout()
    assert first.count("\n| adamw |") == first.count("\n| muon |") == 2
    metrics = {path: path.read_bytes() for path in tmp_path.rglob("metrics.jsonl")}
    assert len(metrics) == 9
    assert stdout() == first
    assert {path: path.read_bytes() for path in metrics} == metrics
    results = json.loads((tmp_path / "study" / "optimizers.json").read_text())["results"]
    assert [(r["optimizer"], r["schedule"]) for r in results] == [
        ("adamw", "cosine"), ("adamw", "wsd"), ("muon", "cosine"), ("muon", "wsd"),
    ]  # fmt: skip
