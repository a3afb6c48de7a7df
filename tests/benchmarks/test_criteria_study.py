"""The arithmetic of benchmarks/criteria.py, and that the whole study runs and goes on where it was."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers import ROOT, SHARED_DATA

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("criteria")


def student(kept: tuple[int, ...], before: float, early: float, after: float, repaired: float | None) -> dict[str, Any]:
    def losses(value: float) -> dict[str, float]:
        return {"objective": value, "loss": 10 + value, "kl": value}

    mended = None if repaired is None else {"before": losses(repaired), "after": losses(repaired / 2)}
    healed = {"before": losses(before), "after": losses(after)}
    return {"kept": kept, "plain": healed, "early": losses(early), "repaired": mended}


def record(scale: float) -> dict[str, Any]:
    """Three cuts: the one that looks best before is worst after, and the short heal tells."""
    students = [
        student((0, 3), 1.0 * scale, 0.9, 0.8, 0.5),
        student((1, 3), 2.0 * scale, 0.4, 0.2, None),
        student((2, 3), 3.0 * scale, 0.5, 0.4, 2.0),
    ]
    proposed = {"taylor": [0, 3], "random": [2, 3], "rank-after": [1, 3]}
    return {"seed": 0, "teacher_loss": 1.5, "proposed": proposed, "students": students}


def test_rows_are_medians_and_ranges_of_what_each_criterion_named(study: ModuleType) -> None:
    rows = list(study.by_criterion([record(1.0), record(2.0), record(4.0)], "kl"))
    assert [row[0] for row in rows] == ["rank-after", "random", "taylor"]  # by what healed students reach
    taylor = ["2.000 (1.000 to 4.000)", "0.800 (0.800 to 0.800)", "0.500 (0.500 to 0.500)", "0.250 (0.250 to 0.250)"]
    assert rows[2][1:] == taylor
    assert rows[1][3] == "2.000 (2.000 to 2.000)"
    assert rows[0][3:] == ["–", "–"]  # which cannot be repaired
    assert next(iter(study.by_criterion([record(1.0)], "loss")))[2].startswith("10.200")


def test_a_ranking_is_judged_by_the_healed_one(study: ModuleType) -> None:
    """Before: 1, 2, 3 against 3, 1, 2, which is 1 - 6 * (4 + 1 + 1) / (3 * 8) = -0.5."""
    before, early = study.predictions([record(1.0)])
    assert before[1:] == ["-0.500 (-0.500 to -0.500)", "0.600 (0.600 to 0.600)"]
    assert early[1:] == ["1.000 (1.000 to 1.000)", "0.000 (0.000 to 0.000)"]


@pytest.mark.slow
def test_the_study_runs_and_a_rerun_trains_nothing_anew(tmp_path: Path) -> None:
    corpus = SHARED_DATA / "corpus"
    if not corpus.is_dir():
        pytest.skip("needs the shared corpus")
    command = [sys.executable, str(BENCHMARKS / "criteria.py"), "--work", str(tmp_path), "--smoke"]

    def run() -> str:
        done = subprocess.run(
            command, cwd=BENCHMARKS, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    page = run()
    records = json.loads((tmp_path / "criteria.json").read_text())["results"]
    assert {"alternate", "taylor", "rank-after"} <= set(records[0]["proposed"])
    logs = {path: path.stat().st_mtime_ns for path in tmp_path.glob("seed-0/heal-*/*/train/metrics.jsonl")}
    assert len(logs) >= 4
    assert run() == page
    assert {path: path.stat().st_mtime_ns for path in logs} == logs
