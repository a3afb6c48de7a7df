"""Bad input gets one clear paragraph, the right exit code, and nothing half-written."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ROOT, byte_tokenizer, save_tiny_model

from compress.cli import main

Run = Callable[..., tuple[int, str]]
RECIPE = "name: x\nteacher: {{model: {0}/model}}\ndata: {{dataset: {0}/text.jsonl, seq_len: 16}}\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    save_tiny_model(folder / "model")
    lines = [json.dumps({"text": f"some words to learn from, number {i}"}) for i in range(400)]
    (folder / "text.jsonl").write_text("\n".join(lines))
    (folder / "no-text.jsonl").write_text('{"body": "some words"}\n' * 4)
    (folder / "empty.jsonl").write_text("")
    shutil.copytree(folder / "model", folder / "truncated")
    weights = folder / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    shutil.copytree(folder / "model", folder / "other-words")
    vocabulary = json.loads((folder / "model" / "tokenizer.json").read_text())
    ids = vocabulary["model"]["vocab"]
    ids["A"], ids["B"] = ids["B"], ids["A"]
    (folder / "other-words" / "tokenizer.json").write_text(json.dumps(vocabulary))
    (folder / "full").mkdir()
    (folder / "full" / "something").write_text("")
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    def command(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["compress", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), capfd.readouterr().err

    return command


TRAIN = ["--set", "data.seq_len=16", "--set", "data.heldout_sequences=2", "--set", "distill.batch_tokens=64"]
TEXT = ["--data", "{}/text.jsonl"]
CASES = {
    "no such model": (3, ["prune", "{}/absent", "{}/out"], "{}/absent"),
    "no such hub model": (3, ["prune", "org/absent", "{}/out"], "org/absent"),
    "truncated shard": (3, ["prune", "{}/truncated", "{}/out"], "truncated/model.safetensors"),
    "layer out of range": (2, ["prune", "{}/model", "{}/out", "--keep", "0,9"], "9"),
    "every layer dropped": (2, ["prune", "{}/model", "{}/out", "--keep", "4::2"], "4::2"),
    "no SPEC": (2, ["prune", "{}/model", "{}/out", "--keep", "half"], "half"),
    "output not empty": (2, ["prune", "{}/model", "{}/full"], "{}/full is not empty"),
    "no text column": (
        3,
        ["distill", "--student", "{}/model", "--alpha", "0", "--data", "{}/no-text.jsonl", "--out", "{}/out", *TRAIN],
        "no-text.jsonl",
    ),
    "empty data": (
        3,
        ["distill", "--student", "{}/model", "--alpha", "0", "--data", "{}/empty.jsonl", "--out", "{}/out", *TRAIN],
        "no tokens",
    ),
    "no such data": (
        3,
        ["distill", "--student", "{}/model", "--alpha", "0", "--data", "{}/absent.jsonl", "--out", "{}/out", *TRAIN],
        "absent.jsonl",
    ),
    "vocabularies differ": (
        3,
        ["distill", "--student", "{}/model", "--teacher", "{}/other-words", *TEXT, "--out", "{}/vocabulary", *TRAIN],
        "tokenizers differ",
    ),
    "alpha without a teacher": (
        2,
        ["distill", "--student", "{}/model", "--data", "{}/text.jsonl", "--out", "{}/no-teacher", *TRAIN],
        "needs a teacher",
    ),
    "unknown key": (2, ["run", "{}/recipe.yaml", "--set", "distill.lrate=1"], "'distill.lrate'; did you mean"),
    "lr: true": (2, ["run", "{}/recipe.yaml", "--set", "distill.lr=true"], "distill.lr = true"),
    "no recipe": (2, ["run", "{}/absent.yaml"], "absent.yaml"),
    "bad count": (2, ["run", "{}/recipe.yaml", "--dry-run", "--flops-per-s", "fast"], "--flops-per-s"),
    "unknown task": (2, ["eval", "{}/model", "--tasks", "hellaswagg", "--out", "{}/eval.json"], "hellaswag"),
    "no run": (3, ["report", "{}/absent"], "{}/absent"),
    "unknown option": (2, ["prune", "{}/model", "{}/out", "--kep", "0"], "--keep"),
}


@pytest.mark.parametrize("name", CASES)
def test_one_paragraph_and_the_right_code(name: str, world: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (world / "recipe.yaml").write_text(RECIPE.format(world))
    code, arguments, expected = CASES[name]
    found, error = run(*(argument.replace("{}", str(world)) for argument in arguments))
    assert expected.replace("{}", str(world)) in error
    assert "Traceback" not in error
    assert found == code, error
    assert not (world / "out" / "student").exists()
    assert not (world / "out.partial").exists()
    assert not (world / "eval.json").exists()


def test_debug_shows_the_traceback(world: Path, run: Run) -> None:
    code, error = run("--debug", "prune", f"{world}/absent", f"{world}/out")
    assert code == 3
    assert "Traceback" in error


def test_a_full_disk_leaves_nothing_and_says_so(world: Path, tmp_path: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    command = [sys.executable, "-m", "compress.cli", "prune", f"{world}/model", f"{tmp_path}/out"]
    done = subprocess.run(command, cwd=ROOT, preexec_fn=limit, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 1, done.stderr
    assert "Make room" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_byte_tokenizer_is_what_the_cases_need() -> None:
    assert byte_tokenizer().decode(byte_tokenizer()("A é\n")["input_ids"]) == "A é\n"
