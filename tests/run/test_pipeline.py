"""`compress run`: every step once, nothing twice, what changed again, what was cut continued."""

import dataclasses
import json
import shutil
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from commands import Outcome, warm
from helpers import byte_tokenizer, run_cli
from recipe_world import RECIPE, SIDE_FILES, make_run_world, make_steps, run_to
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from compress.base.disk import read_json, sha256_tree
from compress.base.errors import UsageError
from compress.cli import cli
from compress.demo import DEMO
from compress.demo import RECIPE as RECIPE_OF_DEMO
from compress.distill import DistillConfig
from compress.run.layout import Layout
from compress.run.pipeline import resolve_paths
from compress.run.recipe import load_recipe
from compress.run.recipe_steps import measures_data, steps_of
from compress.run.scratch import initialise
from compress.run.sections import ScratchTeacher
from compress.verify import verify_run

STEPS = (
    "student-init/prune.json",
    "data/index.json",
    "student/distill.json",
    "eval/teacher.items.jsonl",
    "eval/student.items.jsonl",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def run(world: Path) -> Path:
    return run_to(world / "run", world / "recipe.yaml")


def test_layers_are_measured_on_the_runs_own_text(world: Path, tmp_path: Path) -> None:
    changes = ["prune.keep=null", "prune.layers=2", "prune.by=block-influence", "prune.repair=true"]
    recipe = load_recipe(world / "recipe.yaml", changes)
    assert measures_data(recipe.prune)
    make_steps(recipe, tmp_path, world / "teacher", "data", "prune")
    record = read_json(tmp_path / "student-init" / "prune.json")
    assert record["ranking"]["calibration"]["source"] == str(tmp_path / "data")
    assert all(block["gap_after"] < block["gap_before"] for block in record["repair"]["blocks"])
    other = load_recipe(world / "recipe.yaml", [*changes, "data.seq_len=32"])
    shutil.rmtree(tmp_path / "data")
    make_steps(other, tmp_path, world / "teacher", "data")
    (cut,) = (step for step in steps_of(other, Layout(tmp_path), lambda *_: world / "teacher") if step.group == "prune")
    assert cut.state() == ("changed", ["the calibration is another", "the repair is another"])
    shutil.rmtree(tmp_path / "student-init")
    make_steps(other, tmp_path, world / "teacher", "prune")
    assert read_json(tmp_path / "student-init" / "prune.json")["ranking"]["calibration"]["seq_len"] == 32


def test_a_run_leaves_what_the_contract_says(run: Path) -> None:
    for name in (*STEPS, "recipe.yaml", "report.json", "report.md", "report.html", "train/metrics.jsonl"):
        assert (run / name).is_file(), name
    for model in ("student-init", "student"):
        for name in (*SIDE_FILES, "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
            assert (run / model / name).read_bytes() == (run.parent / "teacher" / name).read_bytes(), name
    prune = read_json(run / "student-init" / "prune.json")
    assert (prune["kept_layers"], prune["dropped_layers"]) == ([1, 3], [0, 2])
    student = AutoModelForCausalLM.from_pretrained(run / "student")
    teacher = AutoModelForCausalLM.from_pretrained(run.parent / "teacher")
    report = read_json(run / "report.json")
    for key, model in (("teacher", teacher), ("student", student)):
        assert report[key]["params"] == sum(p.numel() for p in model.parameters())
        assert {"acc", "acc_norm", "chance", "n"} <= set(report[key]["tasks"]["tiny_choice"])
        assert report[key]["speed"]["decode_tokens_per_s"] > 0
    assert report["student"]["fidelity"]["kl_nats"] < report["student_init"]["fidelity"]["kl_nats"]
    assert set(report["retention"]) == {"tiny_choice"}
    rows = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    logged = [row for row in rows if "loss" in row]
    assert {"step", "tokens", "loss", "soft", "hard", "lr", "grad_norm", "tokens_per_s", "mfu", "peak_gib"} <= set(
        logged[0]
    )
    assert [row["step"] for row in logged] == list(range(1, 17))
    assert {"heldout_loss", "heldout_soft", "heldout_hard"} <= set(next(row for row in rows if "loss" not in row))


def test_a_second_run_does_nothing_again(world: Path, run: Path) -> None:
    before = {name: (run / name).stat().st_mtime_ns for name in STEPS}
    done = run_cli("run", str(world / "recipe.yaml"), "--out", str(run))
    assert done.returncode == 0, done.stderr
    assert {name: (run / name).stat().st_mtime_ns for name in STEPS} == before
    for step in ("data", "prune", "distill", "eval teacher", "eval student-init", "eval student", "speed"):
        assert f"{step}: done, unchanged." in done.stderr


def test_what_changed_is_done_again_when_asked_and_nothing_else(world: Path, run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(run, tmp_path / "run")
    before = {name: (run / name).stat().st_mtime_ns for name in STEPS}
    command = ["run", str(world / "recipe.yaml"), "--out", str(run), "--set", "distill.lr=2e-3"]
    refused = run_cli(*command)
    assert refused.returncode == 2
    assert "lr was 0.001 and is 0.002" in refused.stderr
    assert {name: (run / name).stat().st_mtime_ns for name in STEPS} == before
    done = run_cli(*command, "--redo", "distill")
    assert done.returncode == 0, done.stderr
    changed = {name for name in STEPS if (run / name).stat().st_mtime_ns != before[name]}
    assert changed == {"student/distill.json", "eval/student.items.jsonl"}


def test_other_text_is_measured_of_all_models_and_known_by_its_content(world: Path, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "other.txt").write_text("".join(f"A cat counts {i} dogs, and {i % 7} slept.\n" for i in range(50)))

    def go(other: Path | None, *more: str) -> Outcome:
        asked = [] if other is None else [f"--set=eval.other_text={other}"]
        command = ["run", str(world / "recipe.yaml"), "--out", str(tmp_path / "run"), "--set=eval.speed=false"]
        return run_cli(*command, "--set=eval.heldout_seq_len=50", *asked, *more)

    refused = go(tmp_path / "other.txt")
    assert refused.returncode == 2
    assert f'other_text was null and is "{tmp_path}/other.txt"' in refused.stderr
    done = go(tmp_path / "other.txt", "--redo", "eval")
    assert done.returncode == 0, done.stderr
    assert "loss, other text" in done.stdout
    report = read_json(tmp_path / "run" / "report.json")
    for key, name in (("teacher", "teacher"), ("student_init", "student-init"), ("student", "student")):
        record = read_json(tmp_path / "run" / "eval" / f"{name}.json")
        assert report[key]["other_text"] == record["other_text"]
        assert record["heldout"] == read_json(run / "eval" / f"{name}.json")["heldout"]
        assert (record["other_text"]["fidelity"] is None) == (key == "teacher")
    assert [check.describe() for check in verify_run(tmp_path / "run") if check.status == "FAILED"] == []
    (tmp_path / "other").mkdir()
    moved = (tmp_path / "other.txt").rename(tmp_path / "other" / "other.txt")
    done = go(moved)
    assert done.returncode == 0, done.stderr
    assert all(f"eval {name}: done, unchanged." in done.stderr for name in ("teacher", "student-init", "student"))
    moved.write_text("Something else. " * 50)
    refused = go(moved)
    assert refused.returncode == 2
    assert "the other_text is another" in refused.stderr
    refused = go(None)
    assert "and is null" in refused.stderr


@pytest.mark.faults(1)
def test_a_killed_run_continues_to_the_same_weights(world: Path, run: Path, tmp_path: Path) -> None:
    """SIGKILL once the first checkpoint is there; the finished student equals the uninterrupted one bit for bit."""
    reference = run_cli("run", str(world / "recipe.yaml"), "--out", str(tmp_path / "whole"))
    assert reference.returncode == 0, reference.stderr
    process = warm().start((), "run", str(world / "recipe.yaml"), "--out", str(tmp_path / "cut"))
    while not (tmp_path / "cut" / "train" / "checkpoints" / "step-4").is_dir() and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (tmp_path / "cut" / "student").exists()
    done = run_cli("run", str(world / "recipe.yaml"), "--out", str(tmp_path / "cut"))
    assert done.returncode == 0, done.stderr
    assert "Continuing from" in done.stderr
    weights = [sha256_tree(tmp_path / name / "student", "*.safetensors") for name in ("whole", "cut")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_run_stopped_while_it_evaluates_goes_on_there(world: Path, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "cut")
    command = ["run", str(world / "recipe.yaml"), "--set", "eval.batch_tokens=8", "--redo", "eval", "--out"]
    process = warm().start((), *command, str(tmp_path / "cut"))
    journal = tmp_path / "cut" / "eval" / "student-init.json.journal"
    while not (journal / "0.jsonl").is_file() and process.poll() is None:
        time.sleep(0.002)
    process.terminate()
    assert process.wait().stderr.endswith("Stopped. Run the same command again to go on.\n")
    assert process.returncode == 75
    assert journal.is_dir()
    done = run_cli(*command, str(tmp_path / "cut"))
    assert done.returncode == 0, done.stderr
    assert "eval teacher: done, unchanged." in done.stderr
    assert "Continuing" in done.stderr
    whole = run_cli(*command, str(run))
    assert whole.returncode == 0, whole.stderr
    for name in ("teacher", "student-init", "student"):
        cut, uncut = (read_json(folder / "eval" / f"{name}.json") for folder in (tmp_path / "cut", run))
        for part in ("tasks", "heldout", "fidelity", "samples"):
            assert cut[part] == uncut[part]
    assert not list((tmp_path / "cut" / "eval").glob("*.journal"))


def test_the_four_commands_make_the_same_report(world: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    evaluation = ["--tasks", "tiny_choice", "--datasets-root", f"{world}/hub", "--text", f"{out}/data"]
    evaluation += ["--set", f"eval.task_folder={world}/tasks", "--set", "eval.speed_repeats=1"]
    training = ["--tokens", "4k", "--alpha", "0.5", "--temperature", "2", "--set", "data.seq_len=64"]
    training += ["--set", "data.heldout_sequences=4", "--set", "distill.batch_tokens=512"]
    models = ["--teacher", f"{world}/teacher", "--student", f"{out}/student-init"]
    steps = [
        ["prune", f"{world}/teacher", f"{out}/student-init", "--keep", "1::2"],
        ["distill", *models, "--data", f"{world}/text.jsonl", "--out", str(out), *training],
        ["eval", f"{world}/teacher", "--out", f"{out}/eval/teacher.json", *evaluation],
        ["eval", f"{out}/student", "--teacher", f"{world}/teacher", "--out", f"{out}/eval/student.json", *evaluation],
        ["report", str(out)],
    ]
    for step in steps:
        done = run_cli(*step, "--json")
        assert done.returncode == 0, done.stderr
        record = json.loads(done.stdout)
    assert record["retention"]["tiny_choice"]["paired_items"] == 9
    assert record["train"]["tokens"] == 4032


@pytest.mark.parametrize("folder", ["a #2", "b: c", "d 'e' \"f\"", "- g", "{h}"])
def test_a_run_folder_may_have_any_name(world: Path, folder: str) -> None:
    recipe = load_recipe(world / "recipe.yaml", ["data.dataset=$RUN/world", "eval.datasets_root=$RUN"])
    found = resolve_paths(recipe, Path("runs") / folder)
    assert (found.data.dataset, found.eval.datasets_root) == (f"runs/{folder}/world", f"runs/{folder}")
    data = dataclasses.replace(recipe.data, dataset=found.data.dataset)
    changed = {"data": data, "eval": dataclasses.replace(recipe.eval, datasets_root=found.eval.datasets_root)}
    assert found == dataclasses.replace(recipe, **changed)


def test_a_teacher_from_scratch_that_makes_no_causal_lm_is_refused(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    scratch = ScratchTeacher(
        architecture={"model_type": "vit", "vocab_size": 300}, tokenizer=str(tmp_path), train=DistillConfig(alpha=0.0)
    )
    with pytest.raises(UsageError, match="makes no causal LM"):
        initialise(scratch, tmp_path / "out")


def test_dry_run_writes_nothing(world: Path, tmp_path: Path) -> None:
    done = run_cli("run", str(world / "recipe.yaml"), "--out", str(tmp_path / "run"), "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["distill"]["tokens"] == 8000 // 64 * 64
    assert plan["hours"] * 3600 * plan["flops_per_s"] == pytest.approx(plan["distill"]["flops"])
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_counts_the_scoring_of_the_text(world: Path, tmp_path: Path) -> None:
    """A training's token costs C_t + 3 C_s, its score C_t, or C_t + C_s where the student scores too."""
    plans = {}
    command = ["run", str(world / "recipe.yaml"), "--out", str(tmp_path / "run"), "--dry-run"]
    for by in ("teacher_loss", "student_disagreement"):
        options = [f"--set=distill.select={{by: {by}, to: 0.5}}", "--set=distill.tokens=6k", "--set=data.tokens=16k"]
        plan = plans[by] = json.loads(run_cli(*command, *options, "--json").stdout)
        flops = plan["scoring"]["tokens"] * plan["scoring"]["flops_per_token"]
        assert plan["hours"] * 3600 * plan["flops_per_s"] == pytest.approx(plan["distill"]["flops"] + flops)
        assert plan["scoring"]["tokens"] == 16000
        words = run_cli(*command, *options).stdout
        assert "all the text is scored once: 16k tokens" in words
        assert f"({flops / plan['distill']['flops']:.1%} of the training's)" in words
    teacher, both = (plan["scoring"]["flops_per_token"] for plan in plans.values())
    assert plans["teacher_loss"]["distill"]["flops_per_token"] == pytest.approx(3 * both - 2 * teacher)
    plan = json.loads(run_cli(*command, *options, "--set=data.tokens=null", "--json").stdout)
    assert (plan["scoring"]["tokens"], plan["hours"]) == (None, None)


def test_the_demo_can_be_planned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its recipe names folders by `$DEMO` and `$RUN`; the parameters are counted in the shards themselves."""
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["run", str(RECIPE_OF_DEMO), "--set", "distill.tokens=4M", "--dry-run", "--json"])
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    weights = load_file(DEMO / "teacher" / "model.safetensors")
    assert plan["prune"]["params_before"] == sum(tensor.numel() for tensor in weights.values())
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_from_scratch_is_trained_first(world: Path, tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    train = "{alpha: 0, tokens: 4k, batch_tokens: 512, lr: 1e-2, heldout_sequences: 4}"
    shape = "{model_type: llama, vocab_size: 257, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 4, "
    shape += "num_attention_heads: 4, max_position_embeddings: 128}"
    scratch = f"teacher: {{scratch: {{tokenizer: {tmp_path}/tokenizer, architecture: {shape}, train: {train}}}}}"
    recipe = RECIPE.format(folder=world).replace(f"teacher: {{model: {world}/teacher}}", scratch)
    (tmp_path / "recipe.yaml").write_text(recipe)
    done = run_cli("run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    record = read_json(tmp_path / "run" / "teacher" / "distill.json")
    assert record["teacher"] is None
    rows = (tmp_path / "run" / "teacher-train" / "metrics.jsonl").read_text().splitlines()
    heldout = [json.loads(row)["heldout_hard"] for row in rows if "heldout_hard" in row]
    assert heldout[-1] < heldout[0] - 1
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_teacher_from_scratch_is_trained_whole(world: Path) -> None:
    scratch = "teacher.scratch={tokenizer: x, architecture: {model_type: llama}, train: {alpha: 0, lora: {}}}"
    with pytest.raises(UsageError, match=r"teacher.*trained whole: leave lora and train out"):
        load_recipe(world / "recipe.yaml", ["teacher.model=null", scratch])
