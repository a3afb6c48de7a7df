"""Bad input gets one clear paragraph, the right exit code, and nothing half-written."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import lm_eval.tasks
import pytest
from commands import warm
from fault_injection import FullDisk
from helpers import byte_tokenizer, run_cli, save_tiny_model
from transformers import AutoModelForCausalLM

from compress.base.disk import sha256_tree
from compress.cli import main
from compress.data import DataConfig, prepare

Run = Callable[..., tuple[int, str]]
SECOND_SHARD = "model-00002-of-00004.safetensors"
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
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    model.save_pretrained(folder / "corrupt", max_shard_size="60KB")
    (folder / "corrupt" / SECOND_SHARD).write_bytes(b"\xff" * 64)
    byte_tokenizer().save_pretrained(folder / "corrupt")
    shutil.copytree(folder / "model", folder / "other-words")
    vocabulary = json.loads((folder / "model" / "tokenizer.json").read_text())
    ids = vocabulary["model"]["vocab"]
    ids["A"], ids["B"] = ids["B"], ids["A"]
    (folder / "other-words" / "tokenizer.json").write_text(json.dumps(vocabulary))
    text = DataConfig(dataset=f"{folder}/text.jsonl", seq_len=16, heldout_sequences=2)
    prepare(text, folder / "model", folder / "store", visible=False)
    (folder / "full").mkdir()
    (folder / "full" / "something").write_text("")
    (folder / "taken" / "student").mkdir(parents=True)
    (folder / "taken" / "student" / "something").write_text("")
    recipe = RECIPE.format(folder)
    (folder / "recipe.yaml").write_text(recipe)
    (folder / "unknown-key.yaml").write_text(recipe + "distill:\n  lrate: 1\n")
    (folder / "lr-true.yaml").write_text(recipe + "distill: {lr: true}\n")
    (folder / "no-model.yaml").write_text(recipe.replace("/model}", "/absent}"))
    scratch = "{scratch: {tokenizer: x, train: {alpha: 0}, architecture: {model_type: llama, vocab_size: '5;04'}}}"
    no_architecture = recipe.replace(f"{{model: {folder}/model}}", scratch)
    (folder / "no-architecture.yaml").write_text(no_architecture)
    (folder / "bad-spec.yaml").write_text(recipe + "prune: {keep: '0,9'}\n")
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    def command(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["compress", *arguments])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with pytest.raises(SystemExit) as stop:
                main()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return int(stop.value.code or 0), capfd.readouterr().err

    return command


SMALL = ["--set", "data.seq_len=16", "--set", "data.heldout_sequences=2", "--set", "distill.batch_tokens=64"]
PLAIN = ["--alpha", "0", *SMALL]


def distill(student: str, data: str, *options: str) -> list[str]:
    return ["distill", "--student", student, "--data", data, "--out", "OUT", *options]


CASES = {
    "no such model": (3, ["prune", "{}/absent", "OUT"], "{}/absent"),
    "no such student": (3, distill("{}/absent", "{}/text.jsonl", *PLAIN), "{}/absent"),
    "no such model to score": (3, ["eval", "{}/absent", "--out", "OUT/eval.json"], "{}/absent"),
    "no such teacher in a recipe": (3, ["run", "{}/no-model.yaml", "--out", "OUT"], "{}/absent"),
    "no such hub model": (3, ["prune", "org/absent", "OUT"], "org/absent"),
    "truncated shard": (3, ["prune", "{}/truncated", "OUT"], "{}/truncated/model.safetensors is not a whole"),
    "truncated shard to train": (
        3,
        distill("{}/truncated", "{}/text.jsonl", *PLAIN),
        "{}/truncated/model.safetensors is not a whole",
    ),
    "truncated shard to score": (
        3,
        ["eval", "{}/truncated", "--out", "OUT/eval.json"],
        "{}/truncated/model.safetensors is not a whole",
    ),
    "corrupt shard": (3, ["prune", "{}/corrupt", "OUT"], f"{{}}/corrupt/{SECOND_SHARD} is not a whole"),
    "layer out of range": (2, ["prune", "{}/model", "OUT", "--keep", "0,9"], "9"),
    "layer out of range in a recipe": (2, ["run", "{}/bad-spec.yaml", "--out", "OUT"], "9"),
    "every layer dropped": (2, ["prune", "{}/model", "OUT", "--keep", "4::2"], "4::2"),
    "no SPEC": (2, ["prune", "{}/model", "OUT", "--keep", "half"], "half"),
    "output not empty": (2, ["prune", "{}/model", "{}/full"], "{}/full is not empty"),
    "trained output not empty": (
        2,
        ["distill", "--student", "{}/model", "--data", "{}/text.jsonl", "--out", "{}/taken", *PLAIN],
        "{}/taken/student is not empty",
    ),
    "no text column": (3, distill("{}/model", "{}/no-text.jsonl", *PLAIN), "no-text.jsonl"),
    "empty data": (3, distill("{}/model", "{}/empty.jsonl", *PLAIN), "no tokens"),
    "no such data": (3, distill("{}/model", "{}/absent.jsonl", *PLAIN), "absent.jsonl"),
    "a store of other rows": (
        2,
        distill("{}/model", "{}/store", *PLAIN, "--set", "data.seq_len=2048"),
        "{}/store is a token store, and was made with other options: data.seq_len was 16 and is 2048.",
    ),
    "a store of other text": (
        2,
        distill("{}/model", "{}/store", *PLAIN, "--tokens=64", "--set=data.tokens=96", "--set=data.split=test"),
        "data.split was 'train' and is 'test'; data.tokens was None and is 96.",
    ),
    "vocabularies differ": (
        3,
        distill("{}/model", "{}/text.jsonl", "--teacher", "{}/other-words", *SMALL),
        "tokenizers differ",
    ),
    "alpha without a teacher": (2, distill("{}/model", "{}/text.jsonl", *SMALL), "needs a teacher"),
    "unknown key": (2, ["run", "{}/unknown-key.yaml"], "'distill.lrate'; did you mean"),
    "unknown key in a flag": (
        2,
        ["run", "{}/recipe.yaml", "--set", "distill.lrate=1"],
        "'distill.lrate'; did you mean",
    ),
    "lr: true": (2, ["run", "{}/lr-true.yaml"], "distill.lr = true"),
    "lr: true in a flag": (2, ["run", "{}/recipe.yaml", "--set", "distill.lr=true"], "distill.lr = true"),
    "no recipe": (2, ["run", "{}/absent.yaml"], "absent.yaml"),
    "bad count": (2, ["run", "{}/recipe.yaml", "--dry-run", "--flops-per-s", "fast"], "--flops-per-s"),
    "unknown task": (2, ["eval", "{}/model", "--tasks", "hellaswagg", "--out", "OUT/eval.json"], "hellaswag"),
    "no run": (3, ["report", "{}/absent"], "{}/absent"),
    "a name too long for the system": (2, ["report", "x" * 300], "File name too long"),
    "no architecture": (2, ["run", "{}/no-architecture.yaml", "--dry-run"], "teacher.scratch.architecture: "),
    "unknown option": (2, ["prune", "{}/model", "OUT", "--kep", "0"], "--keep"),
}


@pytest.mark.faults(13, 14, 17, 18, 20, 24)
@pytest.mark.parametrize("name", CASES)
def test_one_paragraph_and_the_right_code(
    name: str, world: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left behind, and no text is prepared first, which can take hours."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    one_folder = Path(lm_eval.tasks.__file__).parent / "hellaswag" / "manager.py"
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(one_folder))  # all 14,000 tasks take seconds
    monkeypatch.chdir(tmp_path)
    before = sha256_tree(world)
    code, arguments, expected = CASES[name]
    found, error = run(*(argument.replace("{}", str(world)) for argument in arguments))
    assert expected.replace("{}", str(world)) in error
    assert "Traceback" not in error
    assert found == code, error
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left <= {"OUT/recipe.yaml"}
    assert sha256_tree(world) == before


SPECS = ("4", "9", "0,9", "2-4", "9:", ":9", "-5:", "4:", "uniform:5", "uniform:0", "contiguous:5", "contiguous:0")


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("choice", [*[("--keep", spec) for spec in SPECS], ("--layers", "5", "--by", "random")])
def test_a_layer_that_the_model_does_not_have_is_wrong_usage(
    choice: tuple[str, ...], dry_run: bool, world: Path, tmp_path: Path, run: Run
) -> None:
    """It has four. Nothing is left, be it a plan or a cut that was asked for."""
    out = tmp_path / "out"
    code, error = run("prune", f"{world}/model", str(out), *choice, *(["--dry-run"] if dry_run else []))
    assert code == 2, error
    assert f"--keep {choice[1]}: " in error or "layers = 5" in error
    assert "4 layers" in error
    assert list(tmp_path.iterdir()) == []


def test_options_that_a_store_has_may_be_given_with_it(world: Path, tmp_path: Path) -> None:
    """--tokens is how much of it to train on: 128 are two steps of 64."""
    arguments = distill(f"{world}/model", f"{world}/store", *PLAIN, "--tokens=128", "--set=data.num_proc=2")
    done = run_cli(*arguments, "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run/student/distill.json").read_text())["steps"] == 2


def test_debug_shows_the_traceback(world: Path, run: Run) -> None:
    code, error = run("--debug", "prune", f"{world}/absent", f"{world}/out")
    assert code == 3
    assert "Traceback" in error


FULL_DISK = {
    "prune": (20_000, ["prune", "{}/model", "OUT"], "", set()),
    "distill, preparing": (20_000, distill("{}/model", "{}/text.jsonl", *PLAIN), "", {"data.partial"}),
    "distill, training": (100_000, distill("{}/model", "{}/text.jsonl", *PLAIN), "step-", {"data", "train"}),
}


@pytest.mark.faults(4)
@pytest.mark.parametrize("name", FULL_DISK)
def test_a_full_disk_says_so_and_leaves_what_can_be_continued(name: str, world: Path, tmp_path: Path) -> None:
    """No file may grow beyond a size. `data.partial` and `data` are what the same command goes on from."""
    bytes_a_file, arguments, expected, left = FULL_DISK[name]
    full = FullDisk(file_bytes=bytes_a_file)
    done = warm().run([full], *(argument.replace("{}", str(world)) for argument in arguments), cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "room" in done.stderr or "space" in done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.glob("OUT/*")} == left
    assert not list(tmp_path.glob("OUT/train/checkpoints/*"))


def test_a_path_of_bytes_that_are_no_text(tmp_path: Path) -> None:
    """Linux has such file names; they are shown as escapes."""
    (tmp_path / os.fsdecode(b"caf\xe9") / "data").mkdir(parents=True)
    done = run_cli("verify", os.fsdecode(b"caf\xe9"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "not checked  data: caf\\udce9/data holds no token store; name the run's with --data\n"


def test_byte_tokenizer_is_what_the_cases_need() -> None:
    assert byte_tokenizer().decode(byte_tokenizer()("A é\n")["input_ids"]) == "A é\n"
