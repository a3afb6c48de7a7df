"""A run whose student is no cut, and one whose teacher is fine-tuned first."""

from pathlib import Path

import pytest
from commands import warm
from fault_injection import Signal
from helpers import run_cli, save_tiny_model
from recipe_world import make_pair_world, run_to
from safetensors.torch import load_file

from compress.base.disk import read_json, sha256_tree
from compress.base.errors import UsageError
from compress.distill import distill
from compress.model.files import model_fingerprint
from compress.run.recipe import load_recipe
from compress.verify import verify_run

FINETUNE = "teacher.finetune={tokens: 4096, batch_tokens: 512, lr: 1e-3, heldout_sequences: 4, checkpoint_every: 4}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pair_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def pair(world: Path) -> Path:
    return run_to(world / "pair", world / "pair.yaml")


@pytest.fixture(scope="module")
def corrected(world: Path) -> Path:
    return run_to(world / "corrected", world / "recipe.yaml", FINETUNE)


def failed(run: Path) -> list[str]:
    return [check.describe() for check in verify_run(run) if check.status == "FAILED"]


def test_a_given_student_is_trained_as_distill_trains_it(world: Path, pair: Path) -> None:
    assert not (pair / "student-init").exists()
    config = load_recipe(pair / "recipe.yaml").distill
    models = {"student": world / "small", "teacher": world / "teacher"}
    distill(config, **models, data=pair / "data", out=world / "alone", work=world / "alone-train")
    alone, found = (load_file(folder / "model.safetensors") for folder in (world / "alone", pair / "student"))
    assert all(alone[name].equal(found[name]) for name in alone)
    assert found["model.embed_tokens.weight"].shape == (320, 32)
    assert failed(pair) == []


def test_its_report_speaks_of_no_cut(world: Path, pair: Path) -> None:
    report = read_json(pair / "report.json")
    assert report["labels"] == {"teacher": "teacher", "student_init": "student before", "student": "distilled"}
    assert report["headline"].startswith("The distilled student has ")
    assert report["student_init"]["manifest"]["inputs"]["model"] == model_fingerprint(world / "small")
    assert report["student"]["fidelity"]["kl_nats"] < report["student_init"]["fidelity"]["kl_nats"]
    assert not any("prune.json" in line for line in report["left_out"])
    for name in ("report.md", "report.html"):
        page = (pair / name).read_text().replace("too_long: cut", "")  # an option of the recipe
        assert "tudent before" in page
        assert not {"cut", "Cut", "healed", "Healed"} & set(page.split("compress report")[-1].split())


def test_it_is_planned_and_known_by_its_content(world: Path, pair: Path) -> None:
    planned = run_cli("run", str(world / "pair.yaml"), "--out", str(pair), "--dry-run")
    sizes = [sum(t.numel() for t in load_file(world / n / "model.safetensors").values()) for n in ("small", "teacher")]
    assert f"a student of its own: {sizes[0]:,} parameters, the teacher has {sizes[1]:,}" in planned.stdout
    assert "distill: done" in planned.stdout
    other = save_tiny_model(world / "other", seed=2, hidden_size=32, num_hidden_layers=2)
    refused = run_cli("run", str(world / "pair.yaml"), "--out", str(pair), "--set", f"student.model={other}")
    assert refused.returncode == 2
    assert "the student is another" in refused.stderr


def test_a_teacher_is_corrected_before_the_cut(world: Path, corrected: Path) -> None:
    config = load_recipe(corrected / "recipe.yaml").teacher.finetune
    assert config is not None
    assert config.alpha == 0
    student = world / "teacher"
    distill(config, student=student, teacher=None, data=corrected / "data", out=world / "tuned", work=world / "tuning")
    alone, found = (load_file(folder / "model.safetensors") for folder in (world / "tuned", corrected / "teacher"))
    assert all(alone[name].equal(found[name]) for name in alone)
    made_from = read_json(corrected / "student-init" / "prune.json")["manifest"]["inputs"]["teacher"]
    assert made_from == model_fingerprint(corrected / "teacher")
    report = read_json(corrected / "report.json")
    assert list(report["labels"].values()) == ["teacher", "teacher before", "cut", "healed"]
    assert report["teacher_before"]["manifest"]["inputs"]["model"] == model_fingerprint(world / "teacher")
    assert report["teacher"]["heldout"]["loss_nats"] < report["teacher_before"]["heldout"]["loss_nats"]
    assert "| teacher before |" in (corrected / "report.md").read_text()
    assert failed(corrected) == []


def test_a_correction_that_is_killed_goes_on_to_the_same_bytes(world: Path, corrected: Path, tmp_path: Path) -> None:
    command = ["run", str(world / "recipe.yaml"), "--out", str(tmp_path / "run"), "--set", FINETUNE]
    kill = Signal(at=("os:replace",), path="*/teacher-train/checkpoints/step-8")
    struck = warm().run((kill,), *command)
    assert struck.struck
    assert struck.returncode == -9
    done = run_cli(*command)
    assert "Continuing from" in done.stderr
    for folder in ("teacher", "student"):
        weights = [run / folder / "model.safetensors" for run in (tmp_path / "run", corrected)]
        assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("prune.keep=0,3", "leave `prune` out, or `student`"),
        ("teacher.finetune={alpha: 0.5}", "teacher.finetune.alpha"),
        ("teacher.finetune={order: easy_to_hard}", "has no teacher to select text by"),
        (
            "teacher={scratch: {architecture: {}, tokenizer: t, train: {alpha: 0}}, finetune: {}}",
            "leave `finetune` out",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(world: Path, change: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_recipe(world / "pair.yaml", [change])


def test_a_student_of_another_vocabulary_is_refused_before_anything_is_made(world: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", num_hidden_layers=2)
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"A": 32', '"A": 33').replace('"B": 33', '"B": 32'))
    assert (other / "tokenizer.json").read_text() != text
    command = ["run", str(world / "pair.yaml"), "--out", str(tmp_path / "run"), "--set", f"student.model={other}"]
    refused = run_cli(*command)
    assert refused.returncode != 0
    assert "token" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "run" / "data").exists()


def test_nothing_of_the_given_models_changes(world: Path, pair: Path, corrected: Path) -> None:
    assert pair.is_dir()
    assert corrected.is_dir()
    fresh = save_tiny_model(world / "as-it-was", num_hidden_layers=4)
    assert sha256_tree(world / "teacher", "*.safetensors") == sha256_tree(fresh, "*.safetensors")
