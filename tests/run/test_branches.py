"""A run that heals branches on each source of its text and merges them: each part is what it is by itself."""

import json
from pathlib import Path

import pytest
from commands import warm
from fault_injection import Signal
from helpers import run_cli
from recipe_world import make_blend_world, run_to

from compress.base.disk import read_json, sha256_file, sha256_tree
from compress.base.errors import UsageError
from compress.data.store.blend import part_folder
from compress.distill import distill
from compress.run.pipeline import run_recipe
from compress.run.recipe import load_recipe
from compress.ship import MergeConfig, merge
from compress.verify import verify_run

TIES = "merge={method: ties, density: 0.5, weights: [1, 3]}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_blend_world(tmp_path_factory.mktemp("world"), tokens="16k", weight=1)


@pytest.fixture(scope="module")
def run(world: Path) -> Path:
    return run_to(world / "run", world / "blend.yaml", TIES)


def test_branches_and_merge_are_those_of_the_commands(run: Path, world: Path, tmp_path: Path) -> None:
    """Each branch is the training on its source's store alone, and the student is what `merge` makes of them."""
    config = load_recipe(world / "blend.yaml").distill
    made = []
    for number in range(2):
        made.append(tmp_path / str(number) / "student")
        models = {"student": run / "student-init", "teacher": world / "teacher"}
        distill(config, **models, data=part_folder(run / "data", number), out=made[-1], work=tmp_path / f"w{number}")
        own = run / "branches" / str(number) / "student" / "model.safetensors"
        assert sha256_file(own) == sha256_file(made[-1] / "model.safetensors")
    how = MergeConfig(method="ties", density=0.5, weights=(1.0, 3.0), base=str(run / "student-init"))
    merge(made, tmp_path / "merged", how)
    assert sha256_tree(tmp_path / "merged", "*.safetensors") == sha256_tree(run / "student", "*.safetensors")
    assert not (run / "student" / "distill.json").exists()


def test_the_report_sets_parts_and_whole_side_by_side(run: Path) -> None:
    names = ("student-init", "branch-0", "branch-1", "student")
    scores = {name: read_json(run / "eval" / f"{name}.json") for name in names}
    told = read_json(run / "report.json")["branches"]
    rows = {row["model"]: row for row in told["rows"]}
    assert list(rows) == ["cut", "healed on num <b>", "healed on words", "mean of the branches", "healed: merged"]
    del rows["mean of the branches"]
    for row, record in zip(rows.values(), scores.values(), strict=True):
        for source in ("num <b>", "words"):
            assert row["kl_nats"][source]["kl_nats"] == record["fidelity"]["by_source"][source]["kl_nats"]
            assert row["loss_nats"][source]["loss_nats"] == record["heldout"]["by_source"][source]["loss_nats"]
        choice = record["tasks"]["tiny_choice"]
        assert row["tasks"]["tiny_choice"]["value"] == choice[choice["primary"]]
    for source in ("num <b>", "words"):
        of = {name: scores[name]["fidelity"]["by_source"][source]["kl_nats"] for name in names}
        nearer = of["student"] <= (of["branch-0"] + of["branch-1"]) / 2
        assert (source in told["nearer"], source in told["farther"]) == (nearer, not nearer)
    page, tables = (run / "report.html").read_text(), (run / "report.md").read_text()
    assert "## Branches and merge" in tables
    assert "num &lt;b&gt;: " in page
    assert "num <b>" not in page
    assert "No distill.json" not in tables


def test_it_is_verified_with_each_source_in_its_order(run: Path) -> None:
    checks = {check.name: check for check in verify_run(run)}
    assert {check.status for check in checks.values()} <= {"ok", "not checked"}
    named = {"branches/0/train: data order", "branches/1/train: rows used once", "student: made from models"}
    assert {name: checks[name].status for name in named} == dict.fromkeys(named, "ok")
    log = run / "branches" / "1" / "train" / "metrics.jsonl"
    whole = log.read_text()
    first, second, *rest = whole.splitlines()
    try:
        log.write_text("\n".join([second, first, *rest]) + "\n")
        failed = {check.name for check in verify_run(run) if check.status == "FAILED"}
    finally:
        log.write_text(whole)
    assert "branches/1/train: log" in failed


def test_another_method_merges_anew_and_trains_nothing(
    world: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(world / "blend.yaml", ["merge={method: linear}"])
    before = sha256_tree(run / "branches", "*.safetensors")
    with pytest.raises(UsageError, match="--redo merge"):
        run_recipe(recipe, run)
    run_recipe(recipe, run, redo=["merge"])
    said = capsys.readouterr().err
    assert all(f"{name}: done, unchanged." in said for name in ("distill num <b>", "distill words", "eval branch-1"))
    assert sha256_tree(run / "branches", "*.safetensors") == before
    assert read_json(run / "student" / "merge.json")["method"] == "linear"
    run_recipe(load_recipe(world / "blend.yaml", [TIES]), run, redo=["merge"])


@pytest.mark.faults(1)
def test_killed_in_the_second_branch_it_goes_on_to_the_same_bytes(run: Path, world: Path) -> None:
    """The recipe has as many steps a branch as the first one's log says."""
    steps = read_json(run / "branches" / "0" / "student" / "distill.json")["steps"]
    kill = Signal(at=("compress.distill.loop.step:Losses.backward",), call=steps + 2)
    options = ("run", str(world / "blend.yaml"), "--set", TIES, "--out", str(world / "cut"))
    struck = warm().run((kill,), *options)
    assert struck.struck
    assert (world / "cut" / "branches" / "0" / "student").is_dir()
    assert not (world / "cut" / "branches" / "1" / "student").exists()
    run_to(world / "cut", world / "blend.yaml", TIES)
    for folder in ("branches/0/student", "branches/1/student", "student"):
        assert sha256_tree(world / "cut" / folder, "*.safetensors") == sha256_tree(run / folder, "*.safetensors")


def test_the_plan_has_a_training_for_each_source(world: Path) -> None:
    done = run_cli("run", str(world / "blend.yaml"), "--set", TIES, "--dry-run", "--json", "--out", f"{world}/new")
    planned = json.loads(done.stdout)
    assert list(planned["branches"]) == ["num <b>", "words"]
    assert not (world / "new").exists()
    sources = (
        f"data.sources=[{{dataset: {world}/text.jsonl, tokens: 12k}}, {{dataset: {world}/words.jsonl, tokens: 4k}}]"
    )
    options = ("--set", TIES, "--set", sources, "--set", "data.tokens=null")
    few = run_cli("run", str(world / "blend.yaml"), *options, "--dry-run", "--out", f"{world}/new")
    assert few.returncode == 2
    assert "branch words: " in few.stderr
    assert "branch text: " not in few.stderr


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["data.sources=null", "data.dataset=x"], "write two or more of them"),
        (["merge.weights=[1]"], "1 numbers for 2 sources"),
        (["eval.during={tasks: [tiny_choice], items: 2}"], "leave eval.during out"),
        (["teacher.cache={}"], "leave teacher.cache out"),
        (["sweep={grid: {distill.alpha: [0, 1]}}"], "leave sweep out"),
        (["merge={method: linear, density: 0.5}"], "linear knows no density"),
    ],
)
def test_what_makes_no_branches_is_refused(world: Path, options: list[str], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        load_recipe(world / "blend.yaml", [TIES, *options])
