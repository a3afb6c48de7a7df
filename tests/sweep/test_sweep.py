"""`compress sweep`: each run is the one that `compress run` makes, what they have alike is made once, and the page."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import warm
from fault_injection import Signal
from helpers import run_cli
from recipe_world import make_run_world, run_to

from compress.base.disk import read_json, sha256_file
from compress.base.errors import UsageError
from compress.report.judge.significance import sign_flip_test
from compress.run.recipe import load_recipe
from compress.sweep.cases import cases_of

GRID = "sweep={grid: {distill.alpha: [0.2, 0.8], distill.temperature: [1.0, 2.0]}}"
FOLDERS = [f"alpha-{alpha}_temperature-{temperature}" for alpha in (0.2, 0.8) for temperature in (1.0, 2.0)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def swept(world: Path) -> Path:
    """A sweep that was killed in a training and then went on."""
    out = world / "swept"
    command = [
        "sweep",
        str(world / "recipe.yaml"),
        "--out",
        str(out),
        f"--set={GRID}",
        "--set=distill.checkpoint_every=2",
    ]
    ended = warm().run([Signal(at=("compress.distill.loop.train:learning_rate",), call=15)], *command)
    assert ended.returncode < 0, ended.stderr
    assert not (out / "sweep.json").exists()
    done = warm().run((), *command, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == read_json(out / "sweep.json")
    return out


def test_each_student_is_the_one_of_its_single_run(world: Path, swept: Path, tmp_path: Path) -> None:
    assert sorted(path.name for path in (swept / "runs").iterdir()) == FOLDERS
    for folder, alpha, temperature in ((FOLDERS[0], 0.2, 1.0), (FOLDERS[3], 0.8, 2.0)):
        changes = (f"distill.alpha={alpha}", f"distill.temperature={temperature}", "distill.checkpoint_every=2")
        single = run_to(tmp_path / folder, world / "recipe.yaml", *changes, "eval.speed=false")
        names = ("student/model.safetensors", "student-init/model.safetensors", "eval/student.items.jsonl")
        for name in names:
            assert sha256_file(swept / "runs" / folder / name) == sha256_file(single / name), name
        found, alone = (read_json(place / "report.json") for place in (swept / "runs" / folder, single))
        assert found["student"]["fidelity"] == alone["student"]["fidelity"]
        verified = run_cli("verify", str(swept / "runs" / folder))
        assert verified.returncode == 0, verified.stdout


def test_what_is_alike_is_made_once_and_each_goes_on_alone(world: Path, swept: Path) -> None:
    first, *others = (swept / "runs" / folder for folder in FOLDERS)
    for other in others:
        for name in ("data/index.json", "student-init/model.safetensors", "eval/teacher.json"):
            assert (other / name).samefile(first / name), name
    assert all(read_json(run / "student" / "distill.json")["together"] == 4 for run in (first, *others))
    again = run_cli("run", str(first / "recipe.yaml"), "--out", str(first))
    assert again.returncode == 0, again.stderr
    assert "distill: done, unchanged" in again.stderr
    done = run_cli("sweep", str(swept / "recipe.yaml"), "--out", str(swept))
    assert done.returncode == 0, done.stderr
    assert "Running" not in done.stderr


def test_the_page_says_who_won_and_whether_that_is_noise(swept: Path) -> None:
    report = read_json(swept / "sweep.json")
    evals = {f: read_json(swept / "runs" / f / "eval" / "student.json")["fidelity"] for f in FOLDERS}
    best = min(FOLDERS, key=lambda folder: evals[folder]["kl_nats"])
    (winner,) = (case for case in report["cases"] if case["number"] == report["winner"])
    assert (winner["folder"], winner["value"]) == (best, evals[best]["kl_nats"])
    for case in report["cases"]:
        if case is not winner:
            own, base = (evals[folder]["by_document"] for folder in (case["folder"], best))
            weighed = [t * (a - b) for t, a, b in zip(own["tokens"], own["kl_nats"], base["kl_nats"], strict=True)]
            difference = evals[case["folder"]]["kl_nats"] - evals[best]["kl_nats"]
            assert sum(weighed) / sum(own["tokens"]) == pytest.approx(difference, abs=1e-9)
            assert case["beside_winner"]["difference"] == pytest.approx(difference, abs=1e-9)
            assert case["beside_winner"]["p"] == sign_flip_test(np.array(weighed))
            assert case["beside_winner"]["p_holm"] >= case["beside_winner"]["p"]
    assert report["heat"]["values"] == {"distill.alpha": ["0.2", "0.8"], "distill.temperature": ["1.0", "2.0"]}
    assert set(report["curves"]) >= {
        "Soft loss: KL from the teacher at temperature 1",
        "Hard loss: next-token cross-entropy",
    }
    html, text = ((swept / f"sweep.{kind}").read_text() for kind in ("html", "md"))
    for case in report["cases"]:
        assert case["name"] in html
        assert f"{case['value']:.4f}" in text
    assert "the least" in text


def test_cuts_are_swept_too_and_one_that_fails_is_on_the_page(world: Path, tmp_path: Path) -> None:
    cases = "sweep={cases: [{prune.keep: alternate}, {prune.keep: '0,3', distill.lr: 1e30, distill.clip_norm: 1e30}]}"
    command = ["sweep", str(world / "recipe.yaml"), "--out", str(tmp_path / "cuts"), f"--set={cases}"]
    done = run_cli(*command, "--set=eval.speed=false", "--set=distill.max_skipped_steps=2")
    assert done.returncode == 1
    assert "in a row" in done.stderr
    report = read_json(tmp_path / "cuts" / "sweep.json")
    made, failed = report["cases"]
    assert made["value"] is not None
    assert "in a row" in failed["failed"]
    assert report["winner"] == 1
    assert "keep 0,3" in (tmp_path / "cuts" / "sweep.html").read_text()


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ("{grid: {distill.alfa: [1]}}", r"sweep, alfa 1.*alfa"),
        ("{grid: {distill.alpha: []}}", "distill.alpha needs a list of values"),
        ("{grid: {distill.alpha: [0.5, 0.5]}}", "alpha 0.5 is there twice"),
        ("{grid: {distill.alpha: [0.5]}, cases: [{distill.lr: 1}]}", "exactly one of"),
        ("{}", "exactly one of"),
        ("null", "has no `sweep`"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(world: Path, sweep: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        cases_of(load_recipe(world / "recipe.yaml", [f"sweep={sweep}"]))


def test_names_of_cases(world: Path) -> None:
    grid = "sweep={grid: {distill.lora.r: [4], eval.tasks: [[a b], []]}}"
    first, second = cases_of(load_recipe(world / "recipe.yaml", [grid]))
    assert first.recipe.distill.lora is not None
    assert (first.recipe.distill.lora.r, second.recipe.eval.tasks) == (4, [])
    assert first.name == 'r 4, tasks ["a b"]'
    assert first.folder != second.folder
    assert first.folder.startswith("r-4_tasks-")
    planned = run_cli("sweep", str(world / "recipe.yaml"), f"--set={GRID}", "--dry-run", "--out", str(world / "plan"))
    assert planned.returncode == 0, planned.stderr
    assert "4 runs in 1 group, at most" in planned.stdout
    assert not (world / "plan").exists()
    refused = run_cli("run", str(world / "recipe.yaml"), f"--set={GRID}")
    assert refused.returncode == 2
    assert "use `compress sweep`" in refused.stderr
