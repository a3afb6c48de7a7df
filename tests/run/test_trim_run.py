"""A recipe that trims its teacher first: all that follows speaks of the ids that stay."""

import json
import random
import shutil
from pathlib import Path

import pytest
from helpers import run_cli, save_tiny_model
from recipe_world import make_run_world, run_to
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from compress.base.disk import read_json, sha256_tree
from compress.base.errors import UsageError
from compress.data import TokenStore
from compress.run.pipeline import run_recipe
from compress.run.recipe import load_recipe
from compress.verify import verify_run

TRIMMED = ("eval.speed=false", "eval.samples=0", "trim={multiple_of: 1}")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world, its teacher with a vocabulary that is wider than the text."""
    folder = make_run_world(tmp_path_factory.mktemp("world"))
    text = [json.loads(line)["text"] for line in (folder / "text.jsonl").read_text().splitlines()]
    rng = random.Random(0)
    more = [" ".join("".join(rng.choices("ABCDEFGH", k=4)) for _ in range(9)) for _ in range(40)]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([*text, *more], trainer)
    shutil.rmtree(folder / "teacher")
    size, ids = backend.get_vocab_size(), dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    save_tiny_model(folder / "teacher", num_hidden_layers=4, vocab_size=size, **ids)
    names = dict.fromkeys(("eos_token", "bos_token", "pad_token"), "<eos>")
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder / "teacher")
    return folder


def test_the_student_is_cut_from_taught_by_and_compared_with_the_trimmed_teacher(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_to(tmp_path / "run", world / "recipe.yaml", *TRIMMED)
    record = read_json(run / "teacher-trimmed" / "trim.json")
    size = record["vocab_after"]
    assert size < record["vocab_before"]
    assert AutoConfig.from_pretrained(run / "student").vocab_size == size
    assert TokenStore.open(run / "data").vocab_size == size
    words = [AutoTokenizer.from_pretrained(run / name).get_vocab() for name in ("teacher-trimmed", "student")]
    assert words[0] == words[1]
    assert read_json(run / "eval" / "teacher.json")["params"] == record["params_after"]
    assert read_json(run / "eval" / "student.json")["fidelity"]["kl_nats"] > 0
    checks = {check.name: check for check in verify_run(run)}
    assert {check.status for check in checks.values()} <= {"ok", "not checked"}
    assert checks["teacher-trimmed: made from model"].status == "ok"
    assert checks["teacher-trimmed: settings"].status == "ok"
    before = sha256_tree(run, "*.safetensors")
    run_recipe(load_recipe(world / "recipe.yaml", TRIMMED), run)
    assert "trim: done, unchanged." in capsys.readouterr().err
    with pytest.raises(UsageError, match="keep_tokens was null and is 300"):
        run_recipe(load_recipe(world / "recipe.yaml", [*TRIMMED, "trim.keep_tokens=300"]), run)
    assert sha256_tree(run, "*.safetensors") == before


def test_what_cannot_be_is_refused_before_anything_is_made(world: Path, tmp_path: Path) -> None:
    recipe = str(world / "recipe.yaml")

    def refused(*options: str) -> str:
        out = tmp_path / "run"
        found = run_cli("run", recipe, "--out", str(out), "--dry-run", *(f"--set={one}" for one in options))
        assert found.returncode == 2
        assert not out.exists()
        return found.stderr

    assert "of which 257 always stay" in refused("trim={keep_tokens: 9}")
    teacher = str(world / "teacher")
    assert "run `compress trim` on both" in refused("trim={}", f"student={{model: {teacher}}}", "prune={}")
    mixture = f"distill.mixture={{with: [{{model: {teacher}}}]}}"
    assert "would keep their own ids" in refused("trim={}", mixture)
    planned = run_cli("run", recipe, "--out", str(tmp_path / "run"), "--dry-run", "--set=trim={keep_tokens: 300}")
    assert "trim: 300 ids stay" in planned.stdout
