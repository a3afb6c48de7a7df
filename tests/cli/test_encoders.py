"""A masked language model through the commands as a user has them: a recipe that cuts, heals and scores it."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from encoder_world import save_encoder, write_text
from helpers import run_cli
from transformers import AutoModelForMaskedLM

from compress.base.disk import read_json
from compress.cli import cli
from compress.data import DataConfig, prepare
from compress.prune import prune

RECIPE = """
name: encoder
teacher:
  model: {folder}/teacher
  finetune: {{epochs: 30, batch_tokens: 512, lr: 3e-3, heldout_every: 0, checkpoint_every: 0}}
prune: {{keep: "0,3"}}
data: {{dataset: {folder}/text.jsonl, seq_len: 32, heldout_sequences: 8}}
distill: {{epochs: 4, batch_tokens: 512, lr: 2e-3, log_every: 5, heldout_sequences: 8, weights: {{similarity: 0.5}}}}
grow: {{layers: [3], by: last}}
eval: {{heldout_sequences: 8}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    save_encoder(folder / "teacher")
    write_text(folder / "text.jsonl")
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    done = run_cli("run", str(folder / "recipe.yaml"), "--out", str(folder / "run"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "filled in right" in done.stdout
    return folder / "run"


def test_healing_brings_the_cut_back_to_its_teacher(run: Path) -> None:
    found = {name: read_json(run / "eval" / f"{name}.json") for name in ("teacher-before", "teacher", "student-init")}
    found |= {name: read_json(run / "eval" / f"{name}.json") for name in ("student", "grown-3")}
    loss = {name: scores["heldout"]["loss_nats"] for name, scores in found.items()}
    assert loss["teacher"] < loss["teacher-before"] - 0.5
    assert loss["student"] < loss["student-init"] - 0.04
    assert found["student"]["fidelity"]["kl_nats"] < 0.5 * found["student-init"]["fidelity"]["kl_nats"]
    assert found["student"]["heldout"]["top1_accuracy"] > found["teacher-before"]["heldout"]["top1_accuracy"]
    assert {(scores["speed"], len(scores["samples"])) for scores in found.values()} == {(None, 0)}
    for name, layers in (("student-init", 2), ("student", 2), ("grow/3", 3)):
        assert AutoModelForMaskedLM.from_pretrained(run / name).config.num_hidden_layers == layers


def test_the_run_is_whole_and_a_second_call_has_nothing_to_do(run: Path) -> None:
    assert run_cli("verify", str(run)).returncode == 0
    before = (run / "student" / "distill.json").stat().st_mtime_ns
    again = run_cli("run", str(run.parent / "recipe.yaml"), "--out", str(run))
    assert again.returncode == 0, again.stderr[-3000:]
    assert (run / "student" / "distill.json").stat().st_mtime_ns == before


def test_commands_for_causal_models_refuse_a_masked_one(tmp_path: Path) -> None:
    teacher, text = str(save_encoder(tmp_path / "teacher")), str(write_text(tmp_path / "text.jsonl", 60))
    prune(teacher, tmp_path / "student", "0,3")
    prepare(DataConfig(dataset=text, seq_len=32, heldout_sequences=2), tokenizer=teacher, out=tmp_path / "data")
    out = str(tmp_path / "out")
    for command in (
        ("generate", teacher, text, out),
        ("trim", teacher, out, "--data", text),
        ("init", teacher, "--layers", "2", "--out", out),
        ("cache", teacher, str(tmp_path / "data"), out),
        ("grow", str(tmp_path / "student"), teacher, out, "--calibration", text),
    ):
        done = CliRunner().invoke(cli, command)
        assert "is for causal language models" in str(done.exception), (command, done.output)
        assert not Path(out).exists(), command
