"""A recipe's grown models: a step of the run, evaluated, reported and verified."""

from pathlib import Path

import pytest
from helpers import run_cli
from recipe_world import make_run_world, run_to

from compress.base.disk import read_json, sha256_tree
from compress.base.errors import UsageError
from compress.model.cuts import Cut, cuts_of
from compress.prune import GrowConfig, grow
from compress.report.pages.html import html_page
from compress.report.run_files import read_run
from compress.run.pipeline import run_recipe
from compress.run.recipe import load_recipe
from compress.verify import verify_run

GROWN = ("eval.speed=false", "eval.samples=0", "grow={layers: [4, 3], calibration_tokens: 512}")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run_world(tmp_path_factory.mktemp("world"))


def test_a_run_grows_evaluates_reports_and_verifies_its_sizes(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_to(tmp_path / "run", world / "recipe.yaml", *GROWN)
    checks = {check.name: check for check in verify_run(run)}
    assert {check.status for check in checks.values()} <= {"ok", "not checked"}
    assert {"grow: made from student", "grow: settings", "grow/3: weights", "eval/grown-4"} <= checks.keys()
    evaluations = {name: read_json(run / "eval" / f"{name}.json") for name in ("student", "grown-3", "grown-4")}
    sizes = read_json(run / "report.json")["sizes"]
    assert [(each["model"], each["layers"]) for each in sizes] == [
        ("healed", 2), ("grown", 3), ("grown", 4), ("teacher", 4),
    ]  # fmt: skip
    assert [each["kl_nats"] for each in sizes] == [
        *(each["fidelity"]["kl_nats"] for each in evaluations.values()),
        0.0,
    ]
    score = evaluations["grown-3"]["tasks"]["tiny_choice"]
    assert sizes[1]["tasks"]["tiny_choice"]["value"] == score[score["primary"]]
    assert "## Every size between" in (run / "report.md").read_text()
    page = html_page(read_json(run / "report.json"), read_run(run))
    assert page.count("grown, 3 layers: KL") == 1
    before = sha256_tree(run, "*.safetensors")
    recipe = load_recipe(world / "recipe.yaml", GROWN)
    run_recipe(recipe, run)
    assert "grow: done, unchanged." in capsys.readouterr().err
    with pytest.raises(UsageError, match="layers was"):
        run_recipe(load_recipe(world / "recipe.yaml", [*GROWN, "grow.layers=[3]"]), run)
    assert sha256_tree(run, "*.safetensors") == before
    weights = run / "grow" / "3" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert "grow" in {check.name for check in verify_run(run) if check.status == "FAILED"}


def test_the_plan_names_the_sizes_and_what_is_wrong_with_them(world: Path, tmp_path: Path) -> None:
    recipe = str(world / "recipe.yaml")
    plan = run_cli("run", recipe, "--out", str(tmp_path / "run"), "--dry-run", *(f"--set={one}" for one in GROWN))
    assert "grow: models of 3, 4 layers" in plan.stdout
    wrong = run_cli("run", recipe, "--out", str(tmp_path / "run"), "--dry-run", "--set=grow={layers: [2]}")
    assert wrong.returncode == 2
    assert "the student has 2 layers and its teacher 4; write numbers from 3 to 4" in wrong.stderr


CHAIN = (
    "stages=[{keep: '0,1,3', tokens: 2k}, {keep: '0,2', tokens: 2k, teacher: previous}, {teacher: self, tokens: 2k}]"
)


def test_the_student_of_a_chain_is_grown_with_blocks_of_the_first_teacher(world: Path, tmp_path: Path) -> None:
    options = ("eval.tasks=[]", "eval.speed=false", "eval.samples=0", "grow={layers: [3], by: last}", CHAIN)
    run = run_to(tmp_path / "run", world / "recipe.yaml", *options)
    record = read_json(run / "grow" / "3" / "grow.json")
    assert (record["student_layers"], record["put_back"], record["kept_layers"]) == ([0, 3], [2], [0, 2, 3])
    assert cuts_of(run / "grow" / "3") == (Cut((0, 2, 3), 4),)
    report = read_json(run / "report.json")
    assert [each["layers"] for each in report["sizes"]] == [2, 3, 4]
    assert {check.status for check in verify_run(run)} <= {"ok", "not checked"}
    middle, config = run / "stages" / "1" / "student", GrowConfig(by="last", layers=(3,))
    again = grow(run / "student", middle, tmp_path / "again", config)
    assert (again.record["student_layers"], again.record["put_back"]) == ((0, 2), [1])
    wrong = run_cli("run", str(world / "recipe.yaml"), "--dry-run", f"--set={CHAIN}", "--set=grow={layers: [2]}")
    assert "the student has 2 layers and its teacher 4; write numbers from 3 to 4" in wrong.stderr
