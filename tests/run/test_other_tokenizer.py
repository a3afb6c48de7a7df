"""A run whose teacher has another tokenizer than its student: from the recipe to the report."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run_cli
from recipe_world import make_run_world, run_to
from two_tokenizers import byte_level, llama_like, save_model_of

from compress.base.disk import read_json
from compress.data import TokenStore
from compress.model.load import load_model, load_tokenizer
from compress.verify import verify_run

ULD = ("distill.divergence=uld", "distill.alpha=0.5")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run_world(tmp_path_factory.mktemp("world"))
    save_model_of(folder / "small", byte_level(), seed=1, scale=0.1, num_hidden_layers=2, hidden_size=32)
    save_model_of(folder / "guide", llama_like(), seed=2, scale=0.2, num_hidden_layers=2)
    recipe = (folder / "recipe.yaml").read_text().replace("/teacher}", "/guide}")
    (folder / "pair.yaml").write_text(recipe.replace("prune: {keep: alternate}", f"student: {{model: {folder}/small}}"))
    return folder


@pytest.fixture(scope="module")
def run(world: Path) -> Path:
    return run_to(world / "run", world / "pair.yaml", *ULD)


def test_it_learns_and_says_what_was_aligned(run: Path) -> None:
    record = read_json(run / "student" / "distill.json")
    rows = map(json.loads, (run / "train" / "metrics.jsonl").read_text().splitlines())
    held = [row for row in rows if "heldout_loss" in row]
    assert held[-1]["heldout_loss"] < held[0]["heldout_loss"]
    assert 0 < record["aligned"]["share"] <= 1
    assert [check.describe() for check in verify_run(run) if check.status == "FAILED"] == []
    page = (run / "report.md").read_text()
    assert "Tokens aligned with the teacher's tokenizer" in page
    assert f"{record['aligned']['share']:.1%}" in page
    assert "only bits per byte compare it" in page
    assert "Nearness to the teacher" not in page
    assert "nan" not in page.lower().split()


def test_bits_per_byte_are_of_the_same_text(run: Path, world: Path) -> None:
    """The teacher's, from transformers' own logits of each document run again from its text."""
    found = read_json(run / "eval" / "teacher.json")["heldout"]
    student = read_json(run / "eval" / "student.json")
    assert student["fidelity"] is None
    assert student["teacher_heldout"]["bits_per_byte"] == pytest.approx(found["bits_per_byte"], rel=1e-9)
    store, words, own = TokenStore.open(run / "data"), *(load_tokenizer(world / name) for name in ("small", "guide"))
    model = load_model(world / "guide", dtype=torch.float32, device=torch.device("cpu"))
    total, count = 0.0, 0
    for row in store.heldout(4):
        parts = np.split(row, np.flatnonzero(row[:-1] == store.eos_id) + 1)
        texts = [words.decode(part[part != store.eos_id].tolist()) for part in parts]
        ids = [
            number
            for text, part in zip(texts, parts, strict=True)
            for number in (
                *own(text, add_special_tokens=False)["input_ids"],
                *[own.eos_token_id] * int(part[-1] == store.eos_id),
            )
        ]
        with torch.no_grad():
            log_p = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        total -= log_p.gather(1, torch.tensor(ids[1:])[:, None]).double().sum().item()
        count += len(ids) - 1
    assert found["tokens"] == count
    assert found["bits_per_byte"] == pytest.approx(total / math.log(2) / store.heldout_bytes(4), rel=1e-5)


def test_the_plan_and_the_refusals(world: Path, run: Path) -> None:
    command = ["run", str(world / "pair.yaml"), "--out", str(world / "other"), "--dry-run"]
    planned = run_cli(*command, *(f"--set={change}" for change in ULD))
    assert planned.returncode == 0, planned.stderr
    for changes, said in (
        (("distill.divergence=forward_kl",), "set distill.divergence to uld"),
        ((*ULD, "teacher.cache={}"), "a cache of the teacher keeps its signals by the student's tokens"),
        ((*ULD, "teacher.finetune={}"), "teacher.finetune trains it on the student's tokens"),
        ((*ULD, "distill.order=easy_to_hard"), "go by the teacher's loss"),
    ):
        refused = run_cli(*command, *(f"--set={change}" for change in changes))
        assert refused.returncode != 0, said
        assert said in refused.stderr
        assert "Traceback" not in refused.stderr
    assert not (world / "other").exists()


def test_an_evaluation_by_itself(world: Path, run: Path, tmp_path: Path) -> None:
    done = run_cli(
        *("eval", str(run / "student"), "--teacher", str(world / "guide"), "--text", str(run / "data")),
        *("--out", str(tmp_path / "scores.json"), "--set=eval.speed=false", "--set=eval.heldout_sequences=4"),
    )
    assert done.returncode == 0, done.stderr
    assert "has another tokenizer: KL and agreement are defined over one vocabulary" in done.stderr
    assert "of its teacher" in done.stdout
    assert "KL to teacher" not in done.stdout
