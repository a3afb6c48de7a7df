"""A run whose student has two teachers, each with weights of its own for the sources of a blend."""

import json
from pathlib import Path

import pytest
import torch
from commands import warm
from fault_injection import Signal
from helpers import run_cli, save_tiny_model
from recipe_world import make_run_world, run_to
from transformers import AutoModelForCausalLM

from compress.base.disk import read_json, read_rows, sha256_json, sha256_tree
from compress.data import TokenStore
from compress.model.files import model_fingerprint
from compress.verify import verify_run

SHARES = {"numbers": (0.75, 0.25), "words": (0.0, 1.0)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run_world(tmp_path_factory.mktemp("world"))
    save_tiny_model(folder / "other", "gpt2", seed=7, scale=0.1, num_hidden_layers=2, vocab_size=320)
    lines = [json.dumps({"text": f"the {word} of a {word} is no {word}. " * 9}) for word in map(str, range(300))]
    (folder / "words.jsonl").write_text("\n".join(lines) + "\n")
    recipe = (folder / "recipe.yaml").read_text()
    sources = f"[{{dataset: {folder}/text.jsonl, name: numbers}}, {{dataset: {folder}/words.jsonl}}]"
    recipe = recipe.replace(f"dataset: {folder}/text.jsonl,", f"tokens: 8k, sources: {sources},")
    mixture = f"{{weight: 3, sources: {{words: 0}}, with: [{{model: {folder}/other}}]}}"
    (folder / "several.yaml").write_text(recipe.replace("distill: {", f"distill: {{mixture: {mixture}, "))
    return folder


@pytest.fixture(scope="module")
def run(world: Path) -> Path:
    return run_to(world / "run", world / "several.yaml")


def test_heldout_kl_is_to_the_mixture_of_each_source(run: Path, world: Path) -> None:
    """Of the cut, before the first step, as whole logits say in float64, over the 257 ids that all three have."""
    store = TokenStore.open(run / "data")
    models = [
        AutoModelForCausalLM.from_pretrained(path).double().eval()
        for path in (run / "student-init", world / "teacher", world / "other")
    ]
    first = read_rows(run / "train" / "metrics.jsonl")[0]
    for number, name in enumerate(store.sources):
        rows = torch.from_numpy(store.heldout(4)[store.heldout_sources(4) == number])
        with torch.no_grad():
            q, *teachers = (model(rows).logits[:, :-1, :257].flatten(0, 1).softmax(-1) for model in models)
        p = sum(share * each for share, each in zip(SHARES[name], teachers, strict=True))
        assert first[f"heldout_kl/{name}"] == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-5)


def test_the_record_the_report_and_the_plan_say_who_taught(run: Path, world: Path) -> None:
    record, teachers = read_json(run / "student" / "distill.json"), (world / "teacher", world / "other")
    hashes = [sha256_json(model_fingerprint(folder)) for folder in teachers]
    assert [each["fingerprint"] for each in record["mixture"]["teachers"]] == hashes
    assert [record["manifest"]["inputs"][role] for role in ("teacher", "teacher 2")] == hashes
    a, b = map(str, teachers)
    words = f"numbers: {a} 75%, {b} 25%; words: {b} 100%; probabilities mixed"
    assert record["mixture"]["shares"] == words
    assert f"| Taught by | {words} |" in (run / "report.md").read_text()
    dry = run_cli("run", str(world / "several.yaml"), "--out", str(world / "dry"), "--dry-run")
    assert f"taught by {words}" in dry.stdout


def test_another_teacher_is_found_by_the_run_and_the_verification(run: Path, world: Path) -> None:
    assert [check.describe() for check in verify_run(run) if check.status == "FAILED"] == []
    weights = (world / "other" / "model.safetensors").read_bytes()
    save_tiny_model(world / "other", "gpt2", seed=8, scale=0.1, num_hidden_layers=2, vocab_size=320)
    try:
        failed = [check.describe() for check in verify_run(run) if check.status == "FAILED"]
        again = run_cli("run", str(world / "several.yaml"), "--out", str(run))
    finally:
        (world / "other" / "model.safetensors").write_bytes(weights)
    assert len(failed) == 1
    assert "student: made from teacher 2" in failed[0]
    assert again.returncode == 2
    assert "the teacher 2 is another" in again.stderr


def test_killed_in_training_it_goes_on_to_the_same_bytes(run: Path, world: Path) -> None:
    kill = Signal(at=("compress.distill.loop.step:Losses.backward",), call=9)
    struck = warm().run((kill,), "run", str(world / "several.yaml"), "--out", str(world / "cut"))
    assert struck.struck
    run_to(world / "cut", world / "several.yaml")
    assert sha256_tree(world / "cut" / "student", "*.safetensors") == sha256_tree(run / "student", "*.safetensors")


def test_the_command_alone_mixes_and_is_verified(run: Path, world: Path) -> None:
    mixture = json.dumps({"of": "logits", "with": [{"model": str(world / "other"), "weight": 0.5}]})
    models = [f"--student={run}/student-init", f"--teacher={world}/teacher", f"--data={run}/data"]
    options = [f"--set=distill.mixture={mixture}", "--tokens=2k", "--set=distill.batch_tokens=512"]
    done = run_cli("distill", *models, *options, "--out", str(world / "alone"))
    assert done.returncode == 0, done.stderr
    assert f"taught by {world}/teacher 67%, {world}/other 33%; logits mixed" in done.stdout
    found = {check.name: check.status for check in verify_run(world / "alone", data=run / "data")}
    assert found["student: made from teacher 2"] == "ok"
    assert "FAILED" not in found.values()
