"""benchmarks/kd_study.py on a tiny pair: each table, what cases share, and a rerun that trains nothing."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from recipe_world import make_pair_world

from compress.base.disk import read_json
from compress.model.files import model_fingerprint


def study(place: Path, *more: str) -> str:
    options = ["--set", "distill.tokens=1024", "--set", "distill.lora={r: 2, alpha: 4}", "--set", "eval.speed=false"]
    command = [sys.executable, str(ROOT / "benchmarks" / "kd_study.py"), "pair.yaml", "--out", "out", *options, *more]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_tables_and_a_rerun(tmp_path: Path) -> None:
    make_pair_world(tmp_path)
    asked = ["--tables", "2", "3", "--seeds", "0", "1"]
    shown = study(tmp_path, *asked)
    names = [f"{case}-{seed}" for case in ("recipe", "teacher-tuned", "kd-0", "student-tuned") for seed in (0, 1)]
    reports = {name: read_json(tmp_path / "out" / name / "report.json") for name in names}

    for row, case in (("as they are", "recipe"), ("fine-tuned first", "teacher-tuned")):
        cells = re.search(rf"\| {row} \|(.*)\|\n", shown)
        assert cells is not None
        losses = [reports[f"{case}-{seed}"]["student"]["heldout"]["loss_nats"] for seed in (0, 1)]
        loss, spread = (float(x) for x in re.findall(r"([0-9.]+) ± [0-9.]+ \(([0-9.]+)\)", cells[1])[1])
        assert loss == pytest.approx(sum(losses) / 2, abs=1e-4)
        assert spread == pytest.approx(abs(losses[0] - losses[1]) / 2, abs=1e-4)

    begun = reports["student-tuned-1"]["student_init"]["manifest"]["inputs"]["model"]
    assert begun == model_fingerprint(tmp_path / "out" / "kd-0-1" / "student")
    assert reports["teacher-tuned-0"]["teacher_before"]["heldout"] == reports["recipe-0"]["teacher"]["heldout"]
    shared = [tmp_path / "out" / name / "eval" / "teacher.json" for name in ("recipe-0", "kd-0-1")]
    assert shared[0].read_bytes() == shared[1].read_bytes()

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/student/*") if path.is_file()}
    assert study(tmp_path, *asked) == shown
    assert {path: path.stat().st_mtime_ns for path in before} == before
    found = json.loads((tmp_path / "out" / "study.json").read_text())["cases"]
    assert found.keys() == {"recipe", "teacher-tuned", "kd-0", "student-tuned"}
