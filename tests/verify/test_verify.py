"""`compress verify`: a good run passes every check, and each kind of damage is named by the check it belongs to."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import warm
from helpers import byte_tokenizer
from recipe_world import RECIPE, make_run_world
from safetensors.torch import load_file, save_file

from compress.base.disk import read_json, sha256_file, write_json
from compress.cli import main
from compress.data import DataConfig, TokenStore, prepare
from compress.run.pipeline import run_recipe
from compress.verify import Check, verify_run

ROWS_A_STEP, STEPS, SEQ_LEN = 8, 16, 64


def hashes_of_rows(store: TokenStore) -> dict[int, str]:
    """The data order's hash after each step, from the store's whole permutation: SHA-256(hash before + ids, int64)."""
    order, found, digest = store.order(0, 0), {}, b""
    for step in range(STEPS):
        ids = order[step * ROWS_A_STEP : min((step + 1) * ROWS_A_STEP, 125)]
        digest = hashlib.sha256(digest + np.asarray(ids, dtype="<i8").tobytes()).digest()
        found[step + 1] = digest.hex()
    return found


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]


def write_log(run: Path, rows: list[dict[str, Any]]) -> None:
    (run / "train" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in `run/`, whose log has the hashes of its rows."""
    folder = make_run_world(tmp_path_factory.mktemp("world"))
    run = run_recipe(folder / "recipe.yaml", folder / "run")
    expected = hashes_of_rows(TokenStore.open(run / "data"))
    rows = log_of(run)
    for row in rows:
        if "loss" in row:
            assert row.get("rows_sha256", expected[row["step"]]) == expected[row["step"]]
            row["rows_sha256"] = expected[row["step"]]
    write_log(run, rows)
    return folder


@pytest.fixture
def run(world: Path, tmp_path: Path) -> Path:
    """A copy of the run to damage."""
    return Path(shutil.copytree(world / "run", tmp_path / "run"))


def checked(run: Path, data: Path | None = None) -> dict[str, Check]:
    return {check.name: check for check in verify_run(run, data)}


def failed(run: Path, data: Path | None = None) -> dict[str, str]:
    return {name: check.detail for name, check in checked(run, data).items() if check.status == "FAILED"}


def flip_a_bit(path: Path, at: float = 0.9) -> None:
    raw = bytearray(path.read_bytes())
    raw[int(len(raw) * at)] ^= 4
    path.write_bytes(raw)


def edit_json(path: Path, edit: Callable[[Any], None]) -> None:
    value = read_json(path)
    edit(value)
    write_json(path, value)


def test_a_good_run_passes_every_check(world: Path) -> None:
    found = checked(world / "run")
    assert {check.status for check in found.values()} == {"ok"}
    assert f"up to step {STEPS}, are those" in found["train: data order"].detail
    assert found["train: rows used once"].detail == "125 rows (8000 tokens) of 846 in 1 epoch, none twice"
    names = {"recipe.yaml", "data", "student-init", "student: made from teacher", "student: weights", "eval/student"}
    assert names | {"train: checkpoint step-16", "data: made from text", "eval/speed", "report.json"} <= set(found)


def test_a_run_in_another_place_is_as_good(world: Path, run: Path) -> None:
    (run / "notes.txt").write_text("an extra file is nobody's business")
    assert failed(run) == {}
    named_alike = run.parent / "branches" / "books"  # as a run's own branches are
    named_alike.parent.mkdir()
    run.rename(named_alike)
    assert failed(named_alike) == {}


def swap_lines(run: Path) -> None:
    rows = log_of(run)
    first, second = (i for i, row in enumerate(rows) if row["step"] in (7, 8) and "loss" in row)
    rows[first], rows[second] = rows[second], rows[first]
    write_log(run, rows)


def edit_log(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Change the row of step 9."""

    def edit(run: Path) -> None:
        rows = log_of(run)
        change(next(row for row in rows if row["step"] == 9 and "loss" in row))
        write_log(run, rows)

    return edit


def read_rows_otherwise(run: Path) -> None:
    """The log of a run that read the same rows in another order, its hashes chained as they should be."""
    rows, digest = log_of(run), b""
    for row in rows:
        if "loss" in row:
            digest = hashlib.sha256(digest + np.arange(row["step"], dtype="<i8").tobytes()).digest()
            row["rows_sha256"] = digest.hex()
    write_log(run, rows)


def poison(run: Path) -> None:
    """A weight that is not a number, in a file whose hash was made to match."""
    path = run / "student" / "model.safetensors"
    weights = load_file(path)
    name = sorted(weights)[0]
    weights[name].view(-1)[5] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    rehash(run, path)


def lose_a_weight(run: Path) -> None:
    path = run / "student" / "model.safetensors"
    weights = load_file(path)
    weights.pop("model.norm.weight")
    save_file(weights, path, metadata={"format": "pt"})
    rehash(run, path)


def rehash(run: Path, path: Path) -> None:
    def edit(record: Any) -> None:
        record["manifest"]["outputs"][path.name] = sha256_file(path)

    edit_json(run / "student" / "distill.json", edit)


def rename_checkpoint(run: Path) -> None:
    (run / "train/checkpoints/step-12").rename(run / "train/checkpoints/step-11")


def edit_recipe(old: str, new: str) -> Callable[[Path], None]:
    def edit(run: Path) -> None:
        text = (run / "recipe.yaml").read_text()
        assert old in text
        (run / "recipe.yaml").write_text(text.replace(old, new, 1))

    return edit


MEASURED = {"eval/student: made from model", "eval/speed: made from student"}
DAMAGE: dict[str, tuple[Callable[[Path], Any], set[str], str]] = {
    "a bit of the student": (
        lambda run: flip_a_bit(run / "student/model.safetensors"),
        {"student", "student: weights", *MEASURED},
        "student/model.safetensors does not match its SHA-256",
    ),
    "a bit of the cut": (
        lambda run: flip_a_bit(run / "student-init/model.safetensors"),
        {
            "student-init",
            "student-init: weights",
            "student: made from student",
            "eval/student-init: made from model",
            "eval/speed: made from student-init",
        },
        "student-init/model.safetensors does not match",
    ),
    "a side file": (
        lambda run: (run / "student/LICENSE").unlink(),
        {"student"},
        "student/LICENSE is missing",
    ),
    "a bit of a shard": (
        lambda run: flip_a_bit(run / "data/train-00000.bin"),
        {"data"},
        "train-00000.bin is not as it was written",
    ),
    "a shard cut short": (
        lambda run: (run / "data/heldout.bin").write_bytes(b""),
        {"data", "data: made with tokenizer", "data: made from text", "train: log", "train: data order"}
        | {"train: rows used once", "student: made from data"}
        | {f"eval/{name}: made from text" for name in ("teacher", "student-init", "student")},
        "heldout.bin",
    ),
    "a shard's hash in a store's manifest": (
        lambda run: edit_json(
            run / "data/index.json", lambda index: index["manifest"]["outputs"].update({"heldout.bin": None})
        ),
        {"data"},
        "manifest.outputs are not the hashes of its shards",
    ),
    "a bit of a checkpoint": (
        lambda run: flip_a_bit(run / "train/checkpoints/step-12/optimizer.safetensors"),
        {"train: checkpoint step-12"},
        "step-12/optimizer.safetensors does not match",
    ),
    "a file of a checkpoint": (
        lambda run: (run / "train/checkpoints/step-16/model.safetensors").unlink(),
        {"train: checkpoint step-16"},
        "step-16/model.safetensors is missing",
    ),
    "a checkpoint's name": (rename_checkpoint, {"train: checkpoint step-11"}, "is of step 12"),
    "a step that never was": (
        edit_log(lambda row: row.update(step=99)),
        {"train: log", "train: data order"},
        "step 99 is beyond the 16 steps",
    ),
    "two swapped lines of the log": (swap_lines, {"train: log"}, "step 7 comes after step 8"),
    "the hash of a step": (
        edit_log(lambda row: row.update(rows_sha256="0" * 64)),
        {"train: data order"},
        "step 9: the rows_sha256 is of other rows",
    ),
    "a hash taken out": (
        edit_log(lambda row: row.pop("rows_sha256")),
        {"train: data order"},
        "step 9 has no rows_sha256",
    ),
    "another order": (read_rows_otherwise, {"train: data order"}, "other rows"),
    "the tokens of a step": (
        edit_log(lambda row: row.update(tokens=1)),
        {"train: log"},
        f"step 9 says 1 tokens and had read {9 * ROWS_A_STEP * SEQ_LEN}",
    ),
    "a line of the log": (
        lambda run: (run / "train/metrics.jsonl").write_text("{'step': 1}\n"),
        {"train: log", "train: data order"},
        "metrics.jsonl, line 1 is not JSON",
    ),
    "the tokens of the whole": (
        lambda run: edit_json(run / "student/distill.json", lambda record: record.update(tokens=8064)),
        {"train: log", "train: rows used once"},
        "says 8064 tokens, and the steps read 8000",
    ),
    "the held-out loss": (
        lambda run: edit_json(run / "student/distill.json", lambda record: record.update(heldout_loss=0.5)),
        {"train: log"},
        "heldout_loss = 0.5",
    ),
    "the recipe's learning rate": (
        edit_recipe("lr: 0.001", "lr: 0.002"),
        {"student: settings"},
        "lr was 0.001 and is 0.002 in recipe.yaml",
    ),
    "the recipe's layers": (
        edit_recipe("keep: alternate", "keep: '0,1'"),
        {"student-init: settings"},
        'keep was "alternate" and is "0,1"',
    ),
    "the recipe's syntax": (edit_recipe("prune:", "prune: ["), {"recipe.yaml"}, "recipe.yaml is not valid YAML"),
    "a weight that is not finite": (poison, {"student: weights", *MEASURED}, "holds values that are not finite"),
    "a weight that is missing": (lose_a_weight, {"student: weights", *MEASURED}, "model.norm.weight"),
    "an item of a benchmark": (
        lambda run: flip_a_bit(run / "eval/student.items.jsonl"),
        {"eval/student"},
        "student.items.jsonl does not match",
    ),
    "a score": (
        lambda run: edit_json(run / "eval/student.json", lambda record: record["heldout"].update(loss_nats=0.1)),
        {"report.json"},
        "its scores of student are not those",
    ),
    "a manifest": (
        lambda run: edit_json(run / "student-init/prune.json", lambda record: record.pop("manifest")),
        {"student-init", "student-init: settings"},
        "prune.json: manifest is missing",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name: str, run: Path) -> None:
    damage, expected, message = DAMAGE[name]
    damage(run)
    found = failed(run)
    assert set(found) == expected
    assert any(message in detail for detail in found.values()), found


def test_inputs_outside_of_the_run_are_compared(world: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(world, tmp_path / "world"))
    recipe = (copy / "run" / "recipe.yaml").read_text().replace(str(world), str(copy))
    (copy / "run" / "recipe.yaml").write_text(recipe)
    flip_a_bit(copy / "teacher" / "model.safetensors")
    with (copy / "text.jsonl").open("a") as text:
        text.write('{"text": "more"}\n')
    found = failed(copy / "run")
    changed = {"student-init: made from teacher", "student: made from teacher", "data: made from text"}
    assert changed <= set(found)
    assert "model.safetensors differs" in found["student-init: made from teacher"]
    shutil.rmtree(copy / "teacher")
    (copy / "text.jsonl").unlink()
    again = checked(copy / "run")
    assert {again[name].status for name in changed} == {"not checked"}


def test_a_run_is_verified_as_far_as_it_is(run: Path) -> None:
    """Killed after step 12: no student, a log that ends in half a line."""
    for name in ("student", "eval", "train/checkpoints/step-16"):
        shutil.rmtree(run / name)
    (run / "report.json").unlink()
    write_log(run, [row for row in log_of(run) if row["step"] <= 13])
    with (run / "train/metrics.jsonl").open("a") as log:
        log.write('{"step": 14, "lo')
    found = checked(run)
    assert {name for name, check in found.items() if check.status == "FAILED"} == set()
    assert "step 13 of 16" in found["train: log"].detail
    assert "104 rows" in found["train: rows used once"].detail
    assert found["student"].status == found["eval/student"].status == "not checked"


def test_an_older_run_has_no_hashes_to_check(run: Path) -> None:
    rows = log_of(run)
    for row in rows:
        row.pop("rows_sha256", None)
    write_log(run, rows)
    for path in run.glob("train/checkpoints/*/state.json"):
        state = read_json(path)
        state.pop("rows_sha256", None)
        write_json(path, state)
        edit_json(
            path.with_name("manifest.json"), lambda m, path=path: m["sha256"].update({path.name: sha256_file(path)})
        )  # type: ignore[misc]
    found = checked(run)
    assert found["train: data order"].status == "not checked"
    assert {check.status for name, check in found.items() if name != "train: data order"} == {"ok"}


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Any]:
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["compress", *arguments])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


def test_the_command(world: Path, run: Path, tmp_path: Path, command: Any) -> None:
    code, out, err = command("verify", str(world / "run"))
    assert (code, err) == (0, "")
    assert all(line.startswith("ok  ") for line in out.splitlines())
    flip_a_bit(run / "student/model.safetensors")
    code, out, err = command("verify", str(run))
    assert code == 3
    assert "FAILED       student: " in out
    assert "4 of " in err
    assert "Traceback" not in err
    code, out, err = command("verify", str(run), "--json")
    record = json.loads(out)
    assert code == 3
    assert record["ok"] is False
    assert {"name": "recipe.yaml", "status": "ok", "detail": "a valid recipe"} in record["checks"]
    for folder in (tmp_path / "absent", tmp_path):
        assert command("verify", str(folder))[0] == 3


def test_under_a_launcher_each_check_is_told_once(run: Path) -> None:
    flip_a_bit(run / "student/model.safetensors")
    done = warm().launch(2, "verify", str(run))
    assert done.returncode != 0
    assert done.stdout.splitlines() == [check.describe() for check in verify_run(run)]
    assert done.stderr.count("checks failed") == 1


def test_a_distillation_alone_and_its_text_elsewhere(world: Path, tmp_path: Path, command: Any) -> None:
    """`compress distill` on a store outside of its folder, over two epochs of 63 rows that end within a step."""
    text = DataConfig(dataset=f"{world}/text.jsonl", seq_len=SEQ_LEN, tokens=63 * SEQ_LEN, heldout_sequences=2)
    prepare(text, world / "teacher", tmp_path / "data")
    models = ["--teacher", f"{world}/teacher", "--student", f"{world}/run/student-init"]
    options = ["--set", "distill.epochs=2", "--set", f"distill.batch_tokens={50 * SEQ_LEN}"]
    arguments = [*models, "--data", f"{tmp_path}/data", "--out", f"{tmp_path}/alone", *options]
    code, _, err = command("distill", *arguments)
    assert code == 0, err
    assert checked(tmp_path / "alone")["student: made from data"].status == "not checked"
    found = checked(tmp_path / "alone", tmp_path / "data")
    assert {check.status for check in found.values()} == {"ok"}
    assert "126 rows (8064 tokens) of 63 in 2 epochs, none twice" in found["train: rows used once"].detail


def test_a_teacher_trained_here_is_part_of_the_chain(world: Path, tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    shape = "{model_type: llama, vocab_size: 257, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 4, "
    shape += "num_attention_heads: 4, max_position_embeddings: 128}"
    train = "{alpha: 0, tokens: 1k, batch_tokens: 512, heldout_sequences: 4}"
    scratch = f"teacher: {{scratch: {{tokenizer: {tmp_path}/tokenizer, architecture: {shape}, train: {train}}}}}"
    recipe = RECIPE.format(folder=world).replace(f"teacher: {{model: {world}/teacher}}", scratch)
    recipe = recipe[: recipe.index("eval:")].replace("tokens: 8k", "tokens: 1k") + "eval: {speed: false, samples: 0}\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    run = run_recipe(tmp_path / "recipe.yaml", tmp_path / "run")
    found = checked(run)
    assert {name for name, check in found.items() if check.status == "FAILED"} == set()
    for name in ("teacher-init: made from tokenizer", "teacher: made from student", "teacher: settings"):
        assert found[name].status == "ok"
    assert found["teacher-train: rows used once"].status == "ok"
    torch.manual_seed(0)
    flip_a_bit(run / "teacher-init" / "model.safetensors")
    assert set(failed(run)) == {"teacher-init", "teacher: made from student"}
