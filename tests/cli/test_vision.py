"""A vision-language model through the commands as a user has them: a recipe that cuts, heals and scores it on rows with
images."""

from pathlib import Path

import pytest
from helpers import run_cli
from transformers import AutoModelForImageTextToText
from vision_world import image_inputs, save_vlm, write_prose, write_rows

from compress.base.disk import read_json

RECIPE = """
name: vision
teacher:
  model: {folder}/teacher
  finetune: {{epochs: 20, batch_tokens: 1536, lr: 3e-3, heldout_every: 0, checkpoint_every: 0}}
prune: {{keep: "0,3"}}
data: {{dataset: {folder}/rows/rows.jsonl, form: images, seq_len: 192, heldout_sequences: 8}}
distill: {{epochs: 12, batch_tokens: 1536, lr: 2e-3, log_every: 5, heldout_sequences: 8}}
eval: {{heldout_sequences: 8, other_text: {folder}/text.txt, heldout_seq_len: 64}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vision")
    save_vlm(folder / "teacher", "idefics3")
    write_rows(folder / "rows", 80)
    write_prose(folder / "text.txt")
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    done = run_cli("run", str(folder / "recipe.yaml"), "--out", str(folder / "run"))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"


def test_healing_brings_the_cut_back_to_its_teacher(run: Path) -> None:
    names = ("teacher-before", "teacher", "student-init", "student")
    found = {name: read_json(run / "eval" / f"{name}.json") for name in names}
    loss = {name: scores["heldout"]["loss_nats"] for name, scores in found.items()}
    assert loss["teacher"] < loss["teacher-before"] - 0.5
    assert loss["student"] < loss["student-init"]
    assert found["student"]["fidelity"]["kl_nats"] < 0.7 * found["student-init"]["fidelity"]["kl_nats"]
    for scores in found.values():
        assert scores["heldout"]["rows_with_images"] == 8
        assert "rows_with_images" not in scores["other_text"]["heldout"]
    for name in ("student-init", "student"):
        model = AutoModelForImageTextToText.from_pretrained(run / name)
        assert model.config.text_config.num_hidden_layers == 2
        model(**image_inputs("idefics3"))


def test_the_run_is_whole_and_a_second_call_has_nothing_to_do(run: Path) -> None:
    verified = run_cli("verify", str(run))
    assert verified.returncode == 0, verified.stdout[-2000:] + verified.stderr[-2000:]
    before = (run / "student" / "distill.json").stat().st_mtime_ns
    again = run_cli("run", str(run.parent / "recipe.yaml"), "--out", str(run))
    assert again.returncode == 0, again.stderr[-3000:]
    assert (run / "student" / "distill.json").stat().st_mtime_ns == before
