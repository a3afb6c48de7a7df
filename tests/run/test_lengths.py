"""Lengths against the context, ids against the embedding: what nobody asked for is cut to fit, and the rest refused."""

import json
import shutil
from pathlib import Path

import model_zoo
import numpy as np
import pytest
import torch
from helpers import byte_tokenizer, run_cli, tiny_config
from transformers import AutoConfig, AutoModelForCausalLM

from compress.base.disk import read_json
from compress.base.errors import InputError
from compress.data import TokenStore
from compress.evaluate import EvalConfig, evaluate_model
from compress.model.lengths import context_tokens, fit
from compress.model.vocabulary import check_ids
from compress.prune import RankingConfig, prune

CONTEXT = 64
MODELS = ("gpt2", "opt", "llama", "gemma")
QUICK = ["eval.speed_repeats=1", "eval.speed_batches=[]", "eval.samples=1", "eval.responses=1", "data.tokens=2k"]
QUICK += ["data.heldout_sequences=2", "distill.tokens=1k", "distill.batch_tokens=512", "eval.heldout_sequences=2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lengths")
    for kind in MODELS:
        torch.manual_seed(0)
        config = tiny_config(kind, max_position_embeddings=CONTEXT)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / kind)
        byte_tokenizer().save_pretrained(folder / kind)
    lines = [json.dumps({"text": f"Number {i} comes after number {i - 1}. " * 8}) for i in range(60)]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("kind", MODELS)
def test_a_run_with_default_lengths_fits_a_short_context(kind: str, place: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        f"name: short\nteacher: {{model: {place}/{kind}}}\ndata: {{dataset: {place}/text.jsonl}}\n"
    )
    command = [
        "run",
        str(tmp_path / "recipe.yaml"),
        "--out",
        str(tmp_path / "run"),
        *(f"--set={each}" for each in QUICK),
    ]
    done = run_cli(*command)
    assert done.returncode == 0, done.stderr
    for said in ("(data.seq_len): 2048 tokens", "Samples: 48 + 64 tokens", "Speed: 128 + 32 tokens"):
        assert f"{said} exceed the context of {CONTEXT}" in done.stderr
    assert TokenStore.open(tmp_path / "run" / "data").seq_len == CONTEXT
    speed = read_json(tmp_path / "run" / "eval" / "speed.json")
    shapes = [(speed[name]["prompt_tokens"], speed[name]["decode_tokens"]) for name in ("teacher", "student")]
    assert shapes == [(52, 12)] * 2
    again = run_cli(*command)
    assert again.stderr.count("done, unchanged") == 7
    assert run_cli("verify", str(tmp_path / "run")).returncode == 0


@pytest.mark.parametrize("kind", MODELS)
def test_rows_that_were_asked_for_are_refused_above_the_context(kind: str, place: Path, tmp_path: Path) -> None:
    models = [f"--student={place}/{kind}", f"--teacher={place}/{kind}", f"--data={place}/text.jsonl"]
    done = run_cli("distill", *models, "--out", str(tmp_path / "run"), "--set=data.seq_len=128")
    assert done.returncode == 2
    assert f"Rows of 128 tokens are longer than {place}/{kind} reads, {CONTEXT} at most" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_cut_measures_what_asking_for_it_would(place: Path) -> None:
    """Held-out loss and samples of default lengths are those of lengths that fit."""
    quick = {"speed": False, "samples": 2, "heldout_sequences": 3}
    fitting = EvalConfig(heldout_seq_len=CONTEXT, sample_prompt_tokens=28, sample_tokens=36, **quick)
    cut, asked = (
        evaluate_model(place / "gpt2", config, text=place / "text.jsonl") for config in (EvalConfig(**quick), fitting)
    )
    assert cut["heldout"] == asked["heldout"]
    assert cut["samples"] == asked["samples"]
    assert len(cut["samples"]) == 2


def test_long_prompts_of_the_users_lose_their_start(place: Path) -> None:
    config = EvalConfig(speed=False, samples=1)
    given, end = (
        evaluate_model(place / "gpt2", config, prompts=[text])["samples"][0]["continuation"]
        for text in ("z" * 200 + "abcd" * 7, "abcd" * 7)
    )
    assert given == end


def test_calibration_rows_fit(place: Path, tmp_path: Path) -> None:
    choice = RankingConfig(
        layers=2, by="block-influence", calibration=str(place / "text.jsonl"), calibration_tokens=500
    )
    record = prune(place / "gpt2", tmp_path / "out", choice).record
    assert record["ranking"]["calibration"]["seq_len"] == CONTEXT


@pytest.mark.parametrize(("prompt", "new", "limit"), [(128, 32, 64), (48, 64, 64), (5, 5, 2), (9, 0, 4), (1, 1, None)])
def test_what_fits_is_as_long_as_can_be_and_in_proportion(prompt: int, new: int, limit: int | None) -> None:
    kept, follows = fit("It", prompt, new, limit)
    if limit is None:
        assert (kept, follows) == (prompt, new)
        return
    assert kept + follows == limit
    assert kept >= 1
    assert abs(follows - new * limit / (prompt + new)) <= 1
    assert (follows == 0) == (new == 0)


@pytest.mark.parametrize("model_type", ["mamba", "bloom", "xlstm"])
def test_models_without_a_bound_have_none(model_type: str) -> None:
    assert context_tokens(AutoConfig.for_model(model_type)) is None


WITH_A_TABLE = ("gpt2", "opt", "gptj", "gpt_bigcode", "biogpt", "openai-gpt", "mpt", "roberta", "camembert", "whisper")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", WITH_A_TABLE)
def test_a_context_is_as_long_as_the_model_can_read(model_type: str) -> None:
    config = model_zoo.tiny_config(model_type)
    limit = context_tokens(config)
    assert limit is not None
    model = AutoModelForCausalLM.from_config(config).eval()
    model(input_ids=torch.full((1, limit), 5), use_cache=False)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, limit + 1), 5), use_cache=False)


@pytest.fixture(scope="module")
def extended(place: Path) -> Path:
    """A model whose tokenizer has a token more than its embedding has rows."""
    folder = place / "extended"
    AutoModelForCausalLM.from_pretrained(place / "llama").save_pretrained(folder)
    tokenizer = byte_tokenizer()
    assert tokenizer.add_tokens(["<new>"]) == 1
    tokenizer.save_pretrained(folder)
    (place / "with.txt").write_text("a <new> token\n" + "".join(f"line {i} and another\n" for i in range(60)))
    (place / "without.txt").write_text("".join(f"line {i} and another\n" for i in range(60)))
    return folder


COMMANDS = {
    "held-out text": ["eval", "MODEL", "--text=TEXT", "--out=OUT", "--set=eval.speed=false", "--set=eval.samples=0"],
    "calibration": ["prune", "MODEL", "OUT", "--layers=2", "--by=taylor", "--calibration=TEXT"],
    "repair": ["prune", "MODEL", "OUT", "--keep=0,2", "--repair", "--calibration=TEXT"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_token_without_an_embedding_is_named_where_it_occurs(
    name: str, place: Path, extended: Path, tmp_path: Path
) -> None:
    for text, code in (("with", 3), ("without", 0)):
        words = {"MODEL": str(extended), "TEXT": f"{place}/{text}.txt", "OUT": str(tmp_path / f"{text}.json")}
        command = COMMANDS[name]
        for word, value in words.items():
            command = [each.replace(word, value) for each in command]
        done = run_cli(*command)
        assert done.returncode == code, done.stderr
        assert ("the token '<new>', id 257, and the embedding" in done.stderr) == (code == 3)


def test_samples_of_such_a_token_are_refused(extended: Path) -> None:
    with pytest.raises(InputError, match="the token '<new>', id 257"):
        evaluate_model(extended, EvalConfig(speed=False, samples=1), prompts=["a <new> one"])


@pytest.mark.parametrize(("text", "code"), [("without", 0), ("with", 3)])
def test_a_text_to_train_on_is_refused_only_if_it_has_such_a_token(
    text: str, code: int, place: Path, extended: Path, tmp_path: Path
) -> None:
    words = ["distill", f"--student={extended}", f"--teacher={extended}", f"--data={place}/{text}.txt", "--out=run"]
    words += ["--set=data.seq_len=32", "--set=data.heldout_sequences=1", "--set=distill.batch_tokens=256"]
    done = run_cli(*words, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert ("the token '<new>', id 257, and the embedding" in done.stderr) == (code == 3)


def test_an_end_of_text_without_an_embedding_is_refused_at_once(place: Path, extended: Path, tmp_path: Path) -> None:
    student = shutil.copytree(extended, tmp_path / "student")
    settings = json.loads((student / "tokenizer_config.json").read_text())
    (student / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<new>"}))
    words = ["distill", f"--student={student}", f"--teacher={student}", f"--data={place}/without.txt", "--out=run"]
    done = run_cli(*words, "--set=data.seq_len=32", cwd=tmp_path)
    assert done.returncode == 3
    assert "the token '<new>', id 257, and the embedding" in done.stderr
    assert not (tmp_path / "run").exists()


def test_ids_are_compared_with_rows() -> None:
    tokenizer = byte_tokenizer()
    check_ids(np.array([0, 256]), 257, tokenizer, "m")
    check_ids(np.array([], dtype=np.int64), 1, tokenizer, "m")
    with pytest.raises(InputError, match=r"the token id 300, and the embedding of m has 257 rows"):
        check_ids(np.array([3, 300]), 257, tokenizer, "m")
