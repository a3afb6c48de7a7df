"""The benchmarks of grown models and of forecasts run on a tiny run, and a rerun measures nothing anew."""

from pathlib import Path

import pytest
from commands import warm
from helpers import ROOT
from recipe_world import make_run_world, run_to

BENCHMARKS = ROOT / "benchmarks"
LEAN = ("eval.tasks=[]", "eval.speed=false", "eval.samples=0", "distill.schedule=constant", "distill.heldout_every=1")


def run(script: str, *options: str) -> list[list[str]]:
    """The cells of the table that a benchmark prints, without its heading."""
    done = warm().run((), *options, script=BENCHMARKS / script, cwd=BENCHMARKS)
    assert done.returncode == 0, done.stderr
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()[2:]]


@pytest.mark.slow
def test_grown_models_stand_beside_cuts_and_forecasts_beside_ends(tmp_path: Path) -> None:
    world = make_run_world(tmp_path)
    made = run_to(tmp_path / "run", world / "recipe.yaml", *LEAN)
    places = ("--teacher", str(world / "teacher"), "--student", str(made / "student"), "--text", str(made / "data"))
    text = ("--calibration", str(made / "data"), "--calibration-tokens", "512", "--heldout", "2", "--no-repair")
    options = (*places, *text, "--layers", "3", "--out", str(tmp_path / "grow"))
    rows = run("grow.py", *options)
    assert [row[:2] for row in rows] == [
        ["healed student", "2"],
        *([f"grown, {order}", "3"] for order in ("kl-greedy", "last", "first")),
        ["cut", "3"],
    ]
    assert all(float(row[2].split()[0]) > 0 for row in rows)
    measured = {path: path.stat().st_mtime_ns for path in (tmp_path / "grow").rglob("*")}
    assert run("grow.py", *options) == rows
    assert all(path.stat().st_mtime_ns == at for path, at in measured.items() if path.suffix == ".json")
    told = run("forecast.py", str(made), "--part", "0.6")
    assert [row[:2] for row in told] == [["run", "constant"]] * 2
    assert [row[3] for row in told] == ["KL", "loss"]
