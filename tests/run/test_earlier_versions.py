"""What version 092ab7b left is taken as done, or gone on with, by every later one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from earlier_runs import content, unpack
from run_world import differences, lasting
from safetensors.torch import load_file

from compress.base.disk import read_json
from compress.base.errors import UsageError
from compress.base.machine import hardware
from compress.cli import cli
from compress.prune import parts
from compress.run.pipeline import run_recipe
from compress.run.recipe import load_recipe
from compress.verify import verify_run

STEPS = ("prune", "data", "distill", "eval teacher", "eval student-init", "eval student")
RENDERED = ("report.json", "report.md", "report.html", "flips.jsonl")


def failures(run: Path, data: Path | None = None) -> list[str]:
    return [check.describe() for check in verify_run(run, data) if check.status == "FAILED"]


def results(run: Path) -> dict[str, bytes]:
    return {name: data for name, data in content(run).items() if name not in RENDERED}


@pytest.mark.parametrize(
    ("name", "further"),
    [("finished", ["speed"]), ("ranked", []), ("scratch", ["world", "teacher-init", "teacher", "speed"])],
)
def test_a_finished_run_is_done(
    name: str, further: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever it lies: `scratch` was made where `$DEMO` was another folder."""
    world = unpack(name, tmp_path)
    monkeypatch.chdir(world)
    before = results(world / "run")
    run_recipe("recipe.yaml", "run")
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if line.endswith(": done, unchanged.")] == [
        f"{step}: done, unchanged." for step in sorted([*STEPS, *further], key=_order(told))
    ]
    assert results(world / "run") == before
    assert failures(world / "run") == []


def _order(told: list[str]) -> Any:
    return lambda step: told.index(f"{step}: done, unchanged.")


def test_a_run_folder_named_in_another_way_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = unpack("scratch", tmp_path)
    monkeypatch.chdir(world)
    before = results(world / "run")
    run_recipe("recipe.yaml", world / "run")
    assert results(world / "run") == before


def same_machine(record: dict[str, Any]) -> bool:
    made = record["manifest"]
    return bool(made["hardware"]["cpu"] == hardware()["cpu"] and made["versions"]["torch"] == torch.__version__)


def known_then(found: dict[str, Any]) -> dict[str, Any]:
    """What a run leaves, without what 092ab7b did not measure; its best checkpoint was the best by another measure, and
    its standard errors were over rows."""
    record = {
        k: v for k, v in found["distill.json"].items() if k in ("steps", "tokens", "heldout_loss", "skipped_steps")
    }
    rows = [
        {k: v for k, v in row.items() if k != "heldout_kl" and not k.endswith("_scaled")} for row in found["metrics"]
    ]
    evals = {name: _measured_then(value) for name, value in found.items() if name.startswith("eval of ")}
    index = {k: v for k, v in found["data/index"].items() if k != "framing"}
    index["manifest"] = {**index["manifest"], "config": dict(index["manifest"]["config"])}
    for later in ("bos", "form", "train_on_prompt", "too_long", "apart"):
        index["manifest"]["config"].pop(later, None)
    index["manifest"]["versions"] = {k: v for k, v in index["manifest"]["versions"].items() if k != "peft"}
    return found | evals | {"distill.json": record, "metrics": rows, "data/index": index}


def _measured_then(found: dict[str, Any]) -> dict[str, Any]:
    over_rows = {
        part: {k: v for k, v in found[part].items() if k != "documents" and not k.endswith("_nats_stderr")}
        for part in ("heldout", "fidelity")
        if found.get(part)
    }
    for part in over_rows.values():
        part.pop("acceptance_rate_stderr", None)
        part.pop("by_document", None)
    return found | over_rows


@pytest.mark.parametrize(
    ("name", "whole", "told"),
    [
        ("killed", "finished", "Continuing from run/train/checkpoints/step-4: 4 of"),
        ("stopped", "finished", "Continuing from run/train/checkpoints/step-6: 6 of"),
        ("preparing", "finished", "Continuing run/data: "),
        ("ranking", "ranked", "Continuing from run/ranking/"),
    ],
)
def test_a_run_under_way_goes_on_to_the_same_end(
    name: str,
    whole: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Bit for bit on the processor that it was begun on; elsewhere weights and losses are rounded otherwise.

    And with repairs on the text and with the ridge of that version: a ranking goes on with those of today.
    """
    expected, world = unpack(whole, tmp_path) / "run", unpack(name, tmp_path)
    monkeypatch.chdir(world)
    monkeypatch.setattr(parts, "_REPAIR", parts.Amount(256, 2048))
    then = ("prune.repair_ridge=0.001", "prune.calibration_seq_len=2048") if name == "ranking" else ()
    run_recipe(load_recipe("recipe.yaml", then), "run")
    assert told in capsys.readouterr().err
    assert failures(world / "run") == []
    if same_machine(read_json(expected / "student" / "distill.json")):
        assert differences(known_then(lasting(world / "run")), known_then(lasting(expected))) == []
    found, wanted = (load_file(run / "student" / "model.safetensors") for run in (world / "run", expected))
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[key], wanted[key], atol=1e-4) for key in wanted)
    rows = [[row.get("rows_sha256") for row in _metrics(run)] for run in (world / "run", expected)]
    assert rows[0] == rows[1]


def _metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]


def test_candidates_that_were_healed_are_not_healed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = unpack("ranking", tmp_path)
    monkeypatch.chdir(world)
    before = content(world / "run" / "ranking")
    run_recipe("recipe.yaml", "run")
    after = content(world / "run" / "ranking")
    finished = [name for name in before if "/" not in name]
    assert finished
    assert {name: after[name] for name in finished} == {name: before[name] for name in finished}


def test_an_evaluation_under_way_begins_anew_and_its_journal_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Results are bit for bit those of one version of the code, so another does not go on with them."""
    world = unpack("evaluating", tmp_path)
    monkeypatch.chdir(world)
    journal = content(world / "run" / "eval" / "student-init.json.journal")
    run_recipe("recipe.yaml", "run")
    told = capsys.readouterr().err
    assert "environment.commit" in told.partition("student-init.json.journal was begun with another")[2]
    (kept,) = (world / "run" / "eval").glob("student-init.json.journal-*")
    assert content(kept) == journal
    assert failures(world / "run") == []


def test_single_commands_take_their_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = unpack("steps", tmp_path)
    monkeypatch.chdir(world)
    before = content(world)
    for command in json.loads((world / "commands.json").read_text()):
        if command[0] == "distill":
            done = CliRunner().invoke(cli, command)
            assert done.exit_code == 0, done.output
    assert content(world) == before
    assert failures(Path("healed")) == failures(Path("from_store"), Path("store")) == []


@pytest.mark.parametrize("name", ["killed", "preparing"])
def test_what_is_under_way_is_not_thrown_away_for_other_settings(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = unpack(name, tmp_path)
    monkeypatch.chdir(world)
    step, change, place = {
        "killed": ("distill", "distill.lr=2e-3", "run/train was begun otherwise: lr was 0.003 and is 0.002"),
        "preparing": ("data", "data.seed=3", "run/data.partial was begun otherwise: seed was 0 and is 3"),
    }[name]
    before = content(world)
    with pytest.raises(UsageError, match=f"{step}: {place}"):
        run_recipe(load_recipe("recipe.yaml", [change]), "run")
    assert content(world) == before
    run_recipe(load_recipe("recipe.yaml", [change]), "run", redo=[step])
    assert list((world / "run" / "old").glob(f"{step}-*"))
    assert failures(world / "run") == []
