"""A recipe's exports: steps of the run, evaluated, timed, reported and verified."""

from pathlib import Path

import pytest
from helpers import run_cli, save_tiny_model
from pair_tokenizer import VOCABULARY, pair_tokenizer
from recipe_world import make_run_world, run_to

from compress.base.disk import read_json, sha256_tree
from compress.base.errors import UsageError
from compress.run.pipeline import run_recipe
from compress.run.recipe import load_recipe
from compress.verify import verify_run

PLAIN = ("eval.samples=0", "eval.responses=0")
EXPORTED = (*PLAIN, "export={format: [f16, gguf-q8_0]}")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's world whose teacher has a tokenizer that a GGUF file can hold."""
    folder = make_run_world(tmp_path_factory.mktemp("world"))
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), VOCABULARY - 2)
    save_tiny_model(folder / "teacher", num_hidden_layers=4, vocab_size=VOCABULARY, **ids)
    pair_tokenizer().save_pretrained(folder / "teacher")
    return folder


def test_a_run_exports_evaluates_times_reports_and_verifies(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(world / "recipe.yaml", EXPORTED)
    run = run_recipe(recipe, tmp_path / "run")
    names = ("student", "export-f16", "export-gguf-q8_0")
    evaluations = {name: read_json(run / "eval" / f"{name}.json") for name in names}
    rows = {row["model"]: row for row in read_json(run / "report.json")["exports"]}
    assert list(rows) == ["teacher", "healed", "as f16", "as gguf-q8_0"]
    for row, evaluation in zip(list(rows.values())[1:], evaluations.values(), strict=True):
        assert row["kl_nats"] == evaluation["fidelity"]["kl_nats"]
        score = evaluation["tasks"]["tiny_choice"]
        assert row["tasks"]["tiny_choice"]["value"] == score[score["primary"]]
    file = run / "export" / "gguf-q8_0" / "model-q8_0.gguf"
    assert rows["as gguf-q8_0"]["bytes"] == file.stat().st_size
    assert rows["as gguf-q8_0"]["decode_tokens_per_s"] is None
    assert evaluations["export-gguf-q8_0"]["model"] == str(file)
    assert sorted(path.name for path in (run / "export").iterdir()) == ["f16", "gguf-q8_0"]
    assert min(rows[name]["decode_tokens_per_s"] for name in ("healed", "as f16")) > 0
    page = (run / "report.md").read_text()
    assert "## What the bits cost" in page
    assert "dequantised: its scores are those of its bits" in page
    card = (run / "export" / "f16" / "README.md").read_text()
    assert "A cut of teacher: 2 of 4 transformer layers stay" in card
    checks = {check.name: check for check in verify_run(run)}
    assert {check.status for check in checks.values()} <= {"ok", "not checked"}
    named = {"export/f16: weights", "export/gguf-q8_0", "export/f16: made from student", "eval/speed-export"}
    assert named <= checks.keys()
    before = sha256_tree(run, "*.safetensors")
    capsys.readouterr()
    run_recipe(recipe, run)
    said = capsys.readouterr().err
    assert all(f"{name}: done, unchanged." in said for name in ("export f16", "eval export-gguf-q8_0", "speed-export"))
    unchecked = load_recipe(world / "recipe.yaml", [*EXPORTED, "export.check=false"])
    with pytest.raises(UsageError, match="check was true and is false"):
        run_recipe(unchecked, run)
    assert sha256_tree(run, "*.safetensors") == before
    run_recipe(unchecked, run, redo=["export"])
    assert read_json(run / "export" / "f16" / "export.json")["check"]["skipped"] == "asked not to"
    assert any((run / "old").glob("export*"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    assert "export/gguf-q8_0" in {check.name for check in verify_run(run) if check.status == "FAILED"}


def test_a_run_that_is_done_is_exported_later_with_nothing_else_anew(world: Path, tmp_path: Path) -> None:
    run = run_to(tmp_path / "run", world / "recipe.yaml", *PLAIN)
    times = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.parent.name in ("student", "eval")}
    run_recipe(load_recipe(world / "recipe.yaml", EXPORTED), run)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert (run / "eval" / "export-f16.json").is_file()
    score = read_json(run / "eval" / "student.json")["tasks"]["tiny_choice"]
    card = (run / "export" / "f16" / "README.md").read_text()
    assert f"{100 * score[score['primary']]:.1f} [" in card


def test_the_plan_names_the_formats_and_what_is_wrong_with_them(world: Path, tmp_path: Path) -> None:
    command = ("run", str(world / "recipe.yaml"), "--out", str(tmp_path / "run"), "--dry-run")
    plan = run_cli(*command, "--set=export={format: [f16, gguf-q8_0]}")
    assert "export: f16, gguf-q8_0" in plan.stdout
    scaling = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    scaled = save_tiny_model(tmp_path / "scaled", num_hidden_layers=4, rope_parameters=scaling)
    wrong = run_cli(*command, f"--set=teacher.model={scaled}", "--set=export={format: gguf-f16}")
    assert wrong.returncode == 3
    assert "rope_parameters.rope_type = linear" in wrong.stderr
